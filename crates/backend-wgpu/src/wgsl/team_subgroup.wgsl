// Sums and maxima over the threads of a team, which is {{subgroups}} subgroups of {{size}} threads.
var<workgroup> team_values: array<f32, {{all_subgroups}}>;
fn team_sum(value: f32, thread: u32) -> f32 {
    let own = subgroupAdd(value);
    workgroupBarrier();
    if (thread % {{size}}u == 0u) { team_values[thread / {{size}}u] = own; }
    workgroupBarrier();
    let first = (thread / {{team}}u) * {{subgroups}}u;
    var total = team_values[first];
    for (var n = 1u; n < {{subgroups}}u; n++) { total += team_values[first + n]; }
    return total;
}
fn team_max(value: f32, thread: u32) -> f32 {
    // A NaN has to come through, which the hardware's maximum does not promise.
    let own = subgroupMax(value);
    let nan = subgroupMax(select(0u, 1u, is_nan(vec4<f32>(value)).x));
    workgroupBarrier();
    if (thread % {{size}}u == 0u) { team_values[thread / {{size}}u] = select(own, not_a_number().x, nan != 0u); }
    workgroupBarrier();
    let first = (thread / {{team}}u) * {{subgroups}}u;
    var largest = team_values[first];
    for (var n = 1u; n < {{subgroups}}u; n++) {
        largest = maximum(vec4<f32>(largest), vec4<f32>(team_values[first + n])).x;
    }
    return largest;
}
