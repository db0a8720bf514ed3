//! Criterion benchmarks of Onesigma, one file per question.
