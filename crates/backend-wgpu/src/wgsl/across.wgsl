// Maxima and sums over the {{tx}} neighbours that share fixed rows.
var<workgroup> neighbours: array<vec4<f32>, {{threads}}>;
fn across_max(value: vec4<f32>, thread: u32) -> vec4<f32> {
    workgroupBarrier();
    neighbours[thread] = value;
    workgroupBarrier();
    let first = thread - thread % {{tx}}u;
    var all = neighbours[first];
    for (var n = 1u; n < {{tx}}u; n++) { all = max(all, neighbours[first + n]); }
    return all;
}
fn across_sum(value: vec4<f32>, thread: u32) -> vec4<f32> {
    workgroupBarrier();
    neighbours[thread] = value;
    workgroupBarrier();
    let first = thread - thread % {{tx}}u;
    var all = neighbours[first];
    for (var n = 1u; n < {{tx}}u; n++) { all += neighbours[first + n]; }
    return all;
}
