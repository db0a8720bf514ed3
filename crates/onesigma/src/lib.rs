//! Unit-scaled low-precision training, out of the box: the Onesigma library and command line.
