// Rows of the table: the updates of an id are neighbours in the order of the ids.
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let quad = id.x + id.y * groups.x * 64u;
    if (quad >= {{quads}}u) { return; }
    var total = vec4<f32>(0.0);
    {{sum}}
    {{out}}_store(quad, bitcast<vec4<u32>>(total * {{alpha}}));
}
