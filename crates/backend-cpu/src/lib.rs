//! The CPU backend of Onesigma: SIMD codecs, threads, low-precision GEMM.
