@compute @workgroup_size({{threads}})
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let quad = id.x + id.y * groups.x * {{threads}}u;
    if (quad >= {{quads}}u) { return; }
{{positions}}{{body}}}
