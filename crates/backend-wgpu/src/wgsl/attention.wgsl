// Attention: {{fixed}} queries of a head, {{looped}} keys at a time. What a query has summed up so
// far is scaled down whenever a larger logit turns up (Milakov and Gimelshein, 2018; Dao et al.,
// 2022), so that logits need no place in memory.
var<workgroup> fixed_rows: array<vec4<f32>, {{fixed_size}}>;
var<workgroup> keys: array<vec4<f32>, {{looped_size}}>;
var<workgroup> values: array<vec4<f32>, {{looped_size}}>;
var<workgroup> weights: array<vec4<f32>, {{patch_size}}>;
@compute @workgroup_size({{threads}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tile = group.x + group.y * groups.x;
    if (tile >= {{tiles}}u) { return; }
    // Last queries first: where attention is causal they see the most.
    let first = ({{blocks}}u - 1u - tile / {{pairs}}u) * {{fixed}}u;
    let head = tile % {{pairs}}u % {{heads}}u;
    let batch = tile % {{pairs}}u / {{heads}}u;
    let kv_head = head / {{shared}}u;
    let tx = thread % {{tx}}u;
    let ty = thread / {{tx}}u;
    for (var n = thread; n < {{fixed}}u * {{quads}}u; n += {{threads}}u) {
        let row = n / {{quads}}u;
        let quad = n % {{quads}}u;
        fixed_rows[row * {{stride}}u + quad] = query(batch, first + row, head, quad);
    }
{{statistics}}
    let end = {{end}};
    for (var start = 0u; start < end; start += {{looped}}u) {
        workgroupBarrier();
        for (var n = thread; n < {{looped}}u * {{quads}}u; n += {{threads}}u) {
            let row = n / {{quads}}u;
            let quad = n % {{quads}}u;
            keys[row * {{stride}}u + quad] = key(batch, start + row, kv_head, quad);
            values[row * {{stride}}u + quad] = value(batch, start + row, kv_head, quad);
        }
        workgroupBarrier();
{{products}}
{{masks}}
{{softmax}}
{{put}}
{{shrink}}
        workgroupBarrier();
{{add}}
    }
{{results}}
}
