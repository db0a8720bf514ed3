// Sums and maxima over the threads of a team: neighbours, as many as a power of two.
var<workgroup> team_values: array<f32, {{threads}}>;
fn team_sum(value: f32, thread: u32) -> f32 {
    workgroupBarrier();
    team_values[thread] = value;
    workgroupBarrier();
    for (var step = {{team}}u / 2u; step > 0u; step /= 2u) {
        if (thread % {{team}}u < step) {
            team_values[thread] += team_values[thread + step];
        }
        workgroupBarrier();
    }
    return team_values[thread - thread % {{team}}u];
}
fn team_max(value: f32, thread: u32) -> f32 {
    workgroupBarrier();
    team_values[thread] = value;
    workgroupBarrier();
    for (var step = {{team}}u / 2u; step > 0u; step /= 2u) {
        if (thread % {{team}}u < step) {
            team_values[thread] = maximum(vec4<f32>(team_values[thread]), vec4<f32>(team_values[thread + step])).x;
        }
        workgroupBarrier();
    }
    return team_values[thread - thread % {{team}}u];
}
