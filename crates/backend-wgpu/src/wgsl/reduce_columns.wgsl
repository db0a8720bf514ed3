// 32 threads take four neighbouring outputs each, 8 rows of them share the reduced elements.
var<workgroup> partial: array<vec4<f32>, 256>;
fn combined(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return {{combined}};
}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tile = group.x + group.y * groups.x;
    let part = tile / {{tiles}}u;
    let quad = (tile % {{tiles}}u) * 32u + thread % 32u;
    let first = min(quad, {{last_quad}}u);
    let o = min(vec4<u32>(4u * first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>({{last}}u));
    let slice = thread / 32u;
    let end = min((part + 1u) * {{part_count}}u, {{count}}u);
    var total = {{initial}};
    for (var r = part * {{part_count}}u + slice; r < end; r += 8u) {
{{body}}        total = combined(total, {{value}});
    }
    partial[thread] = total;
    workgroupBarrier();
    for (var step = 4u; step > 0u; step /= 2u) {
        if (slice < step) {
            partial[thread] = combined(partial[thread], partial[thread + 32u * step]);
        }
        workgroupBarrier();
    }
    if (slice == 0u && quad <= {{last_quad}}u && part < {{parts}}u) {
        let sums = bitcast<vec4<u32>>(partial[thread] * {{alpha}});
        {{store}}
    }
}
