//! Optimisers, schedules, data, checkpoints and the training loop of Onesigma.
