// Tiles of {{bm}} x {{bn}}, {{bk}} elements of the inner axis at a time. A thread stages one block
// of 4 x 4 elements and sums {{tm}} x {{tn}} products in f32.
var<workgroup> left_tile: array<vec4<f32>, {{left_quads}}>;
var<workgroup> right_tile: array<vec4<f32>, {{right_quads}}>;
@compute @workgroup_size({{threads}})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tile = group.x + group.y * groups.x;
    if (tile >= {{tiles}}u) { return; }
    let first_column = (tile % {{column_tiles}}u) * {{bn}}u;
    let first_row = ((tile / {{column_tiles}}u) % {{row_tiles}}u) * {{bm}}u;
    let batch = tile / {{batch_tiles}}u;
    let across = thread % {{threads_across}}u;
    let down = thread / {{threads_across}}u;
{{accumulators}}
    var block: array<vec4<f32>, 4>;
    {{fetch}}
    for (var k = 0u; k < {{k}}u; k += {{bk}}u) {
        {{stage}}
        workgroupBarrier();
        // The next block is under way while this one is worked on.
        if (k + {{bk}}u < {{k}}u) {
            {{fetch_next}}
        }
        for (var inner = 0u; inner < {{bk}}u; inner++) {
{{multiply}}
        }
        workgroupBarrier();
    }
{{results}}
}
