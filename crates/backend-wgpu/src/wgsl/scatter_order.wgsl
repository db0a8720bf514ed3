// The rank of each id: how many come before it, equal ones by their positions. So the order is
// always the same, and with it the order of every sum.
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let position = id.x + id.y * groups.x * 64u;
    if (position >= {{count}}u) { return; }
    let own = {{ids}}_code(position);
    var rank = 0u;
    for (var other = 0u; other < {{count}}u; other++) {
        let value = {{ids}}_code(other);
        rank += select(0u, 1u, value < own || (value == own && other < position));
    }
    {{sorted}}_put(rank, own);
    {{order}}_put(rank, position);
}
