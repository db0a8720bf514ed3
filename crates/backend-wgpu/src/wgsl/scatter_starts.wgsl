// Where the updates of each row begin in the order of the ids, and behind the last where they end.
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = id.x + id.y * groups.x * 64u;
    if (row > {{rows}}u) { return; }
    var low = 0u;
    var high = {{count}}u;
    while (low < high) {
        let middle = (low + high) / 2u;
        if ({{sorted}}_code(middle) < row) { low = middle + 1u; } else { high = middle; }
    }
    {{starts}}_put(row, low);
}
