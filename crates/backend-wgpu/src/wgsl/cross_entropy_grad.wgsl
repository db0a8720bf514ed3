// Gradient of cross-entropy over {{width}} classes for the logits, whose place it may take: the share
// of each class less the target's 1, times what the row counts.
fn logits(row: u32, quad: u32) -> vec4<f32> {
    return {{logits}};
}
@compute @workgroup_size({{threads}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = (group.x + group.y * groups.x) * {{per_group}}u + thread / {{team}}u;
    if (row > {{last_row}}u) { return; }
    let member = thread % {{team}}u;
    let largest = {{largest}};
    let share = 1.0 / {{total}};
    let target_class = {{target}};
    let counts = {{counts}};
    let factor = {{factor}};
    for (var first = member; first < {{quads}}u; first += {{span}}u) {
{{loads}}{{results}}    }
}
