// Cross-entropy over {{width}} classes: a team of {{team}} threads goes over a row once, with the
// largest logit so far and the sum of exponentials beside it.
fn lanes_sum(x: vec4<f32>) -> f32 {
    return (x.x + x.y) + (x.z + x.w);
}
fn lanes_max(x: vec4<f32>) -> f32 {
    return max(max(x.x, x.y), max(x.z, x.w));
}
// Beyond the row: nothing, in a sum of exponentials.
fn logits(row: u32, quad: u32) -> vec4<f32> {
    if (quad >= {{quads}}u) { return negative(infinity()); }
    return {{logits}};
}
@compute @workgroup_size({{threads}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let own_row = (group.x + group.y * groups.x) * {{per_group}}u + thread / {{team}}u;
    let row = min(own_row, {{last_row}}u);
    let member = thread % {{team}}u;
    var largest = vec4<f32>(-3.4028234e38);
    var total = vec4<f32>(0.0);
    for (var quad = member; quad < {{quads}}u; quad += {{span}}u) {
        let a = logits(row, quad);
        let b = logits(row, quad + {{team}}u);
        let c = logits(row, quad + 2u * {{team}}u);
        let d = logits(row, quad + 3u * {{team}}u);
        let top = max(largest, max(max(a, b), max(c, d)));
        let more = (exponential(a - top) + exponential(b - top)) + (exponential(c - top) + exponential(d - top));
        total = total * exponential(largest - top) + more;
        largest = top;
    }
    let row_largest = team_max(lanes_max(largest), thread);
    let row_total = team_sum(lanes_sum(total * exponential(largest - row_largest)), thread);
    if (member == 0u && own_row <= {{last_row}}u) {
{{results}}
    }
}
