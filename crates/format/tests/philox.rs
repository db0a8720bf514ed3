//! Philox against its published test vectors, and the independence of chunks.

use onesigma_format::{
    Noise,
    philox::{draw, fill_normal, fill_u32, fill_uniform, normal, philox4x32_10, uniform},
};

/// `kat_vectors` of Random123 1.09 (philox 4x32, 10 rounds).
#[test]
fn published_vectors() {
    let zeros = philox4x32_10([0; 4], [0; 2]);
    assert_eq!(zeros, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    let ones = philox4x32_10([u32::MAX; 4], [u32::MAX; 2]);
    assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    let pi = philox4x32_10(
        [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
        [0xa409_3822, 0x299f_31d0],
    );
    assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
}

#[test]
fn chunks_do_not_change_the_stream() {
    let noise = Noise { seed: 1 << 40 | 9, tensor: 2, step: 3, offset: 6 };
    let mut whole = [0; 1000];
    fill_u32(noise, &mut whole);
    for (index, word) in whole.iter().enumerate() {
        assert_eq!(*word, draw(noise, index as u64, 32));
    }
    for cut in [1, 3, 64, 65, 777] {
        let mut part = vec![0; 1000 - cut];
        fill_u32(Noise { offset: noise.offset + cut as u64, ..noise }, &mut part);
        assert_eq!(part, whole[cut..]);
    }
    let (mut uniforms, mut normals) = ([0.0; 1000], [0.0; 1000]);
    fill_uniform(noise, &mut uniforms);
    fill_normal(noise, &mut normals);
    for index in 0..1000 {
        assert_eq!(uniforms[index], uniform(whole[index]));
        assert_eq!(normals[index], normal(whole[index]));
    }
}

#[test]
#[cfg_attr(miri, ignore = "hours in Miri")]
fn normal_values_have_the_moments_of_the_normal_distribution() {
    let mut values = vec![0.0; 1 << 20];
    fill_normal(Noise { seed: 3, ..Noise::default() }, &mut values);
    let n = values.len() as f64;
    let moment = |power| values.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / n;
    // Five standard errors of each moment's estimate: sqrt(Var(x^k) / n), n = 2^20.
    assert!(moment(1).abs() < 5.0 * (1.0 / n).sqrt());
    assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
    assert!(moment(3).abs() < 5.0 * (15.0 / n).sqrt());
    assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / n).sqrt());
}

#[test]
fn extreme_words_give_finite_symmetric_normals() {
    assert_eq!(normal(0), -normal(u32::MAX));
    assert!(normal(u32::MAX).is_finite() && normal(u32::MAX) > 6.2);
    assert_eq!(uniform(0), 0.0);
    assert!(uniform(u32::MAX) < 1.0);
}
