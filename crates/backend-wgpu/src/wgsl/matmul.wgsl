// Tiles of {{bm}} x {{bn}}, {{bk}} elements of the inner axis at a time. Threads stage blocks of
// 4 x 4 elements, and each sums {{tm}} x {{tn}} products in f32.
var<workgroup> left_tile: array<vec4<f32>, {{left_quads}}>;
var<workgroup> right_tile: array<vec4<f32>, {{right_quads}}>;
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
    // 32 neighbours are {{row}} across and {{column}} down.
    let across = thread % {{row}}u + (thread / 32u) % {{rows_across}}u * {{row}}u;
    let down = thread % 32u / {{row}}u + thread / 32u / {{rows_across}}u * {{column}}u;
{{accumulators}}
{{fetch}}
    for (var k = 0u; k < {{k}}u; k += {{bk}}u) {
{{stage}}
        workgroupBarrier();
        // The next part is under way while this one is worked on.
        if (k + {{bk}}u < {{k}}u) {
{{fetch_next}}
        }
{{multiply}}
{{after}}    }
{{results}}
}
