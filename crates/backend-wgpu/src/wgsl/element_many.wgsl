// Each thread takes {{count}} quads, so that as many loads are under way at once.
@compute @workgroup_size({{threads}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first = (group.x + group.y * groups.x) * {{span}}u + thread;
    if (first >= {{quads}}u) { return; }
{{positions}}{{body}}}
