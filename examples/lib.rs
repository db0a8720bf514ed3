//! Five small programs that use Onesigma as a library; each is one file beside this one.
//!
//! | program | shows |
//! | --- | --- |
//! | `format_round_trip` | numbers into every format and back, what is lost |
//! | `unit_scaled_mlp` | a model of one's own: layers, gradients, an update, one program |
//! | `convert_model` | a regular model becomes a unit-scaled one, the same function |
//! | `custom_backend` | a backend of one's own under the conformance suite's contract |
//! | `train_gpt` | training and generation without the command line |
//!
//! ```text
//! cargo run --release -p onesigma-examples --example train_gpt
//! ```
