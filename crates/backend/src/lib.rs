//! The Backend trait, legalisation, f64 reference kernels and the null backend of Onesigma.
