//! Unit-scaled and regular GPT and BERT for Onesigma.
