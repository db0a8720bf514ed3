// A team of {{team}} threads reduces the last axes for one output.
var<workgroup> partial: array<f32, {{threads}}>;
fn combined(a: f32, b: f32) -> f32 {
    return {{combined}};
}
@compute @workgroup_size({{threads}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let at = (group.x + group.y * groups.x) * {{per_group}}u + thread / {{team}}u;
    let place = min(at, {{last}}u);
    let o = place / {{parts}}u;
    let part = place % {{parts}}u;
    let member = thread % {{team}}u;
    let end = min((part + 1u) * {{part_quads}}u, {{quads}}u);
    var total = {{initial}};
    for (var q = part * {{part_quads}}u + member; q < end; q += {{team}}u) {
        let inside = vec4<u32>(4u * q) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>({{count}}u);
        let r = min(vec4<u32>(4u * q) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>({{last_reduced}}u));
{{body}}        total = {{take}};
    }
    partial[thread] = combined(combined(total.x, total.y), combined(total.z, total.w));
    workgroupBarrier();
    for (var step = {{team}}u / 2u; step > 0u; step /= 2u) {
        if (member < step) {
            partial[thread] = combined(partial[thread], partial[thread + step]);
        }
        workgroupBarrier();
    }
    if (member == 0u && at <= {{last}}u) {
        {{out}}_put(at, bitcast<u32>(partial[thread] * {{alpha}}));
    }
}
