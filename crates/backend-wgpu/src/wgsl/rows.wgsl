// {{title}}: a team of {{team}} threads keeps a row of {{width}} elements in registers.
fn lanes_sum(x: vec4<f32>) -> f32 {
    return (x.x + x.y) + (x.z + x.w);
}
fn lanes_max(x: vec4<f32>) -> f32 {
    return maximum(maximum(x, x.yxwz), maximum(x.zwxy, x.wzyx)).x;
}
@compute @workgroup_size({{threads}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let own_row = (group.x + group.y * groups.x) * {{per_group}}u + thread / {{team}}u;
    let row = min(own_row, {{last_row}}u);
    let is_mine = own_row <= {{last_row}}u;
    let member = thread % {{team}}u;
{{load}}{{statistics}}{{results}}}
