// The rank of each id: how many come before it, equal ones by their positions. So the order is
// always the same, and with it the order of every sum.
var<workgroup> part: array<u32, 256>;
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let position = (group.x + group.y * groups.x) * 256u + thread;
    let own = {{ids}}_code(min(position, {{count}}u - 1u));
    var rank = 0u;
    for (var start = 0u; start < {{count}}u; start += 256u) {
        workgroupBarrier();
        part[thread] = {{ids}}_code(min(start + thread, {{count}}u - 1u));
        workgroupBarrier();
        let size = min({{count}}u - start, 256u);
        for (var n = 0u; n < size; n++) {
            let value = part[n];
            rank += select(0u, 1u, value < own || (value == own && start + n < position));
        }
    }
    if (position < {{count}}u) {
        {{sorted}}_put(rank, own);
        {{order}}_put(rank, position);
    }
}
