fn main() -> std::process::ExitCode {
    onesigma_conformance::main_for(|| Ok(Box::new(backend_template::backend()?)))
}
