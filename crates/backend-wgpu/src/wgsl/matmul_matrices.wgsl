// Tiles of {{bm}} x {{bn}} by cooperative matrices of {{edge}} x {{edge}}: F16 operands, sums in f32. Each
// subgroup works on {{sm}} x {{sn}}; {{bk}} elements of the inner axis are staged at a time, in
// rows that are longer by {{pad}} so that they lie in different banks. Matrices are loaded from
// addresses that are multiples of 16 bytes, which the type of a tile does not ask for: so every
// variable that a workgroup shares takes a multiple of 16 bytes.
{{arrays}}
var<workgroup> result_tile: array<vec4<f32>, {{result_size}}>;
// Four halves that two words hold; the values are exact in f32.
fn halves(words: vec2<u32>) -> vec4<f16> {
    return vec4<f16>(vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)));
}
// The same where one word holds the first and the third, the other the second and the fourth.
fn spread(even: u32, odd: u32) -> vec4<f16> {
    let a = unpack2x16float(even);
    let b = unpack2x16float(odd);
    return vec4<f16>(vec4<f32>(a.x, b.x, a.y, b.y));
}
// Eight codes of E4M3 plus one, without signs: those of NaN have the highest bit then.
fn next_code(codes: vec2<u32>) -> vec2<u32> {
    return (codes & vec2<u32>(0x7f7f7f7fu)) + vec2<u32>(0x01010101u);
}
@compute @workgroup_size({{threads}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tile = group.x + group.y * groups.x;
    if (tile >= {{tiles}}u) { return; }
    // Bands of 8 rows of tiles, so that tiles that run at once share operands in the cache.
    let batch = tile / {{batch_tiles}}u;
    let own = tile % {{batch_tiles}}u;
    let band = own / {{band}}u;
    let band_rows = min({{row_tiles}}u - band * 8u, 8u);
    let first_row = (band * 8u + (own % {{band}}u) % band_rows) * {{bm}}u;
    let first_column = ((own % {{band}}u) / band_rows) * {{bn}}u;
    let subgroup = thread / {{lanes}}u;
    let lane = thread % {{lanes}}u;
    let own_row = (subgroup / {{subgroups_across}}u) * {{sm}}u;
    let own_column = (subgroup % {{subgroups_across}}u) * {{sn}}u;
{{places}}
{{own_places}}
{{accumulators}}
{{first}}
    for (var k = 0u; k < {{k}}u; k += {{bk}}u) {
{{stage}}
        workgroupBarrier();
        // The next part is under way while this one is worked on.
        let next = min(k + {{bk}}u, {{last}}u);
{{next}}
{{products}}
        workgroupBarrier();
    }
{{results}}
}
