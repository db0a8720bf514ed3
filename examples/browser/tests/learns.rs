//! The page's model learns, here on a device of this machine.
#![allow(clippy::print_stdout)] // a skip is said aloud

use onesigma_browser::Trainer;

#[test]
fn the_model_learns_to_spell() -> Result<(), onesigma_browser::Error> {
    let mut trainer = match pollster::block_on(Trainer::open("unit-fp8")) {
        Ok(trainer) => trainer,
        Err(error) if error.to_string().contains("no adapter") => {
            println!("skipped: {error}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let losses = pollster::block_on(trainer.train(60))?;
    println!("{}: {:.3} to {:.3}", trainer.device(), losses[0], losses[59]);
    // 28 letters in equal shares have 3.3 nats.
    assert!(losses[0] > 3.0 && losses[59] < 1.5, "{losses:?}");
    let text = pollster::block_on(trainer.write("two plus ", 20))?;
    println!("{text}");
    assert!(text.starts_with("two plus ") && text.len() == 29, "{text}");
    Ok(())
}
