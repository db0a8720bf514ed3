//! The suite that every backend runs, on candle's processor device.

fn main() -> std::process::ExitCode {
    onesigma_conformance::main_for(|| {
        let device = candle_core::Device::Cpu;
        Ok(Box::new(onesigma_backend_candle::on_device(device)?))
    })
}
