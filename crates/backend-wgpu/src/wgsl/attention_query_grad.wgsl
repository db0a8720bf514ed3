// Gradient of attention for {{fixed}} queries of a head, {{looped}} keys at a time; the weights are
// made again from the logits and their log-sum-exp.
var<workgroup> query_rows: array<vec4<f32>, {{fixed_size}}>;
var<workgroup> dy_rows: array<vec4<f32>, {{fixed_size}}>;
var<workgroup> keys: array<vec4<f32>, {{looped_size}}>;
var<workgroup> values: array<vec4<f32>, {{looped_size}}>;
var<workgroup> weights: array<vec4<f32>, {{patch_size}}>;
@compute @workgroup_size({{threads}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tile = group.x + group.y * groups.x;
    if (tile >= {{tiles}}u) { return; }
    let first = ({{blocks}}u - 1u - tile / {{pairs}}u) * {{fixed}}u;
    let head = tile % {{pairs}}u % {{heads}}u;
    let batch = tile % {{pairs}}u / {{heads}}u;
    let kv_head = head / {{shared}}u;
    let tx = thread % {{tx}}u;
    let ty = thread / {{tx}}u;
    for (var n = thread; n < {{fixed}}u * {{quads}}u; n += {{threads}}u) {
        let row = n / {{quads}}u;
        let quad = n % {{quads}}u;
        query_rows[row * {{stride}}u + quad] = query(batch, first + row, head, quad);
        dy_rows[row * {{stride}}u + quad] = d_output(batch, first + row, head, quad);
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
{{d_products}}
{{masks}}
{{gradient}}
{{put}}
        workgroupBarrier();
{{add}}
    }
{{results}}
}
