// Maxima and sums over the {{tx}} neighbours that share fixed rows, all in one subgroup.
fn across_max(value: vec4<f32>, thread: u32) -> vec4<f32> {
    var all = value;
{{max}}    return all;
}
fn across_sum(value: vec4<f32>, thread: u32) -> vec4<f32> {
    var all = value;
{{sum}}    return all;
}
