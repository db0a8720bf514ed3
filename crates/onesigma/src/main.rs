//! The Onesigma command line.
fn main() {}
