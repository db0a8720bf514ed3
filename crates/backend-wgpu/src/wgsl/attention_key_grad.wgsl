// Gradients of attention for {{fixed}} keys and values of a head, {{looped}} queries at a time, over
// the heads of queries that share them.
var<workgroup> key_rows: array<vec4<f32>, {{fixed_size}}>;
var<workgroup> value_rows: array<vec4<f32>, {{fixed_size}}>;
var<workgroup> queries: array<vec4<f32>, {{looped_size}}>;
var<workgroup> dys: array<vec4<f32>, {{looped_size}}>;
var<workgroup> weights: array<vec4<f32>, {{patch_size}}>;
var<workgroup> d_weights: array<vec4<f32>, {{patch_size}}>;
@compute @workgroup_size({{threads}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tile = group.x + group.y * groups.x;
    if (tile >= {{tiles}}u) { return; }
    let first = tile / {{kv_pairs}}u * {{fixed}}u;
    let kv_head = tile % {{kv_pairs}}u % {{kv_heads}}u;
    let batch = tile % {{kv_pairs}}u / {{kv_heads}}u;
    let tx = thread % {{tx}}u;
    let ty = thread / {{tx}}u;
    for (var n = thread; n < {{fixed}}u * {{quads}}u; n += {{threads}}u) {
        let row = n / {{quads}}u;
        let quad = n % {{quads}}u;
        key_rows[row * {{stride}}u + quad] = key(batch, first + row, kv_head, quad);
        value_rows[row * {{stride}}u + quad] = value(batch, first + row, kv_head, quad);
    }
{{statistics}}
    let first_query = {{first_query}};
    for (var head = kv_head * {{shared}}u; head < (kv_head + 1u) * {{shared}}u; head++) {
    for (var start = first_query; start < {{queries}}u; start += {{looped}}u) {
        workgroupBarrier();
        for (var n = thread; n < {{looped}}u * {{quads}}u; n += {{threads}}u) {
            let row = n / {{quads}}u;
            let quad = n % {{quads}}u;
            queries[row * {{stride}}u + quad] = query(batch, start + row, head, quad);
            dys[row * {{stride}}u + quad] = d_output(batch, start + row, head, quad);
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
    }
{{results}}
}
