//! Number formats for low-precision training: FP8, FP16 and narrower; exact codecs at memory speed.
