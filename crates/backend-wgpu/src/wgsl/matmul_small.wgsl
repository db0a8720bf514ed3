// Small products: a thread sums four neighbouring columns of one row.
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let at = id.x + id.y * groups.x * 64u;
    if (at >= {{count}}u) { return; }
    let column = 4u * (at % {{quads}}u);
    let row = (at / {{quads}}u) % {{m}}u;
    let batch = at / {{batch_count}}u;
    var sum = vec4<f32>(0.0);
    for (var k = 0u; k < {{k}}u; k++) {
        sum += left(batch, row, k) * right(batch, column, k);
    }
    let start = batch * {{numel}}u + row * {{n}}u + column;
{{results}}}
