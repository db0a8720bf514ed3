//! Large results of an encoding bypass the caches: reading a line only to overwrite it costs
//! memory bandwidth. (Decoding writes whole lines at once and gains nothing.)
#![allow(unsafe_code)] // non-temporal stores

/// Results of at least this many bytes are streamed. About half of a server's last-level cache:
/// what is smaller may be wanted again at once.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const STREAM_BYTES: usize = 16 << 20;

/// Bytes made in the cache before they are streamed.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const PART: usize = 4096;
#[cfg(all(target_arch = "x86_64", not(miri)))]
const LINE: usize = 64;

/// Fills `dst` from its start with what `fill` writes into consecutive parts of it, which are
/// whole codes of `code_bytes` bytes.
pub(super) fn write_in_parts(dst: &mut [u8], code_bytes: usize, mut fill: impl FnMut(&mut [u8])) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if dst.len() >= STREAM_BYTES && dst.as_ptr().align_offset(LINE).is_multiple_of(code_bytes) {
        return stream(dst, fill);
    }
    let _ = code_bytes;
    fill(dst);
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn stream(dst: &mut [u8], mut fill: impl FnMut(&mut [u8])) {
    use core::arch::x86_64::{__m128i, _mm_load_si128, _mm_sfence, _mm_stream_si128};

    #[repr(align(64))]
    struct Buffer([u8; PART]);

    let aligned = dst.as_ptr().align_offset(LINE);
    let (head, rest) = dst.split_at_mut(aligned);
    if !head.is_empty() {
        fill(head);
    }
    let mut buffer = Buffer([0; PART]);
    for part in rest.chunks_mut(PART) {
        if !part.len().is_multiple_of(LINE) {
            fill(part);
            continue;
        }
        let made = &mut buffer.0[..part.len()];
        fill(made);
        let vectors = part.len() / size_of::<__m128i>();
        let from = made.as_ptr().cast::<__m128i>();
        let to = part.as_mut_ptr().cast::<__m128i>();
        for index in 0..vectors {
            // SAFETY: both slices hold `vectors` vectors and begin at a multiple of 64 bytes: the
            // buffer by its alignment, `part` because `rest` does and parts are whole lines.
            unsafe { _mm_stream_si128(to.add(index), _mm_load_si128(from.add(index))) };
        }
    }
    // SAFETY: SSE is part of x86-64.
    unsafe { _mm_sfence() };
}
