fn main() -> std::process::ExitCode {
    onesigma_conformance::main_for(|| Ok(Box::new(engine_template::backend()?)))
}
