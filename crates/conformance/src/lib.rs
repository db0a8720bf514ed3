//! The test suite that every Onesigma backend runs.
