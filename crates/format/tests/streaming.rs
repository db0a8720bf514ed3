//! Large results, which bypass the caches, are the same as small ones.

use onesigma_format::{Conversion, Format, Noise, Overflow, Rounding, encode_slice, philox};

#[test]
#[cfg_attr(miri, ignore = "hours in Miri")]
fn large_slices_equal_small_ones_at_any_alignment() {
    let mut src = vec![0.0; (16 << 20) + 77];
    philox::fill_normal(Noise { seed: 6, ..Noise::default() }, &mut src);
    let stochastic = Rounding::Stochastic { bits: 8 };
    let how = Conversion { rounding: stochastic, overflow: Overflow::Saturate };
    for format in [Format::E4M3, Format::BF16] {
        let bytes = src.len() * format.bytes();
        let mut expected = vec![0; bytes];
        for (part, (src, dst)) in
            src.chunks(1 << 16).zip(expected.chunks_mut((1 << 16) * format.bytes())).enumerate()
        {
            let noise = Noise { offset: (part << 16) as u64, ..Noise::default() };
            encode_slice(format, how, noise, src, dst).expect("fits");
        }
        for start in [0, 1, 2, 63] {
            let mut found = vec![0; bytes + start];
            encode_slice(format, how, Noise::default(), &src, &mut found[start..]).expect("fits");
            assert!(found[start..] == expected, "{format} from byte {start}");
            assert!(found[..start].iter().all(|&byte| byte == 0));
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "hours in Miri")]
fn large_f32_copies_are_copies() {
    let src: Vec<f32> = (0..(4 << 20) + 5).map(|index| index as f32).collect();
    let mut found = vec![0; 4 * src.len()];
    encode_slice(Format::F32, Conversion::SATURATE, Noise::default(), &src, &mut found)
        .expect("fits");
    assert!(found.as_chunks().0.iter().zip(&src).all(|(a, b)| f32::from_le_bytes(*a) == *b));
}
