//! Codes of fewer than 8 bits, packed without gaps from the low bit up.

/// Puts `code` at element `index`; the bits there must be 0.
#[inline]
pub(super) fn put(bytes: &mut [u8], bits: u32, index: usize, code: u8) {
    let first = index * bits as usize;
    let placed = u32::from(code) << (first % 8);
    bytes[first / 8] |= placed as u8;
    if placed > 0xff {
        bytes[first / 8 + 1] |= (placed >> 8) as u8;
    }
}

/// The code at element `index`.
#[inline]
pub(super) fn get(bytes: &[u8], bits: u32, index: usize) -> u8 {
    let first = index * bits as usize;
    let low = u32::from(bytes[first / 8]);
    let high = bytes.get(first / 8 + 1).map_or(0, |&byte| u32::from(byte));
    ((low | high << 8) >> (first % 8)) as u8 & ((1 << bits) - 1)
}

/// Packs codes that begin at a byte border; their number may be odd. For 4 and 6 bits.
#[inline(always)]
pub(super) fn pack(bits: u32, codes: &[u8], bytes: &mut [u8]) {
    let whole = if bits == 4 {
        let (pairs, _) = codes.as_chunks::<2>();
        for (pair, byte) in pairs.iter().zip(&mut *bytes) {
            let pair = u16::from_le_bytes(*pair);
            *byte = (pair | pair >> 4) as u8;
        }
        pairs.len() * 2
    } else {
        let (fours, _) = codes.as_chunks::<4>();
        for (four, three) in fours.iter().zip(bytes.as_chunks_mut::<3>().0) {
            let four = u32::from_le_bytes(*four);
            let packed = (four & 0x3f)
                | (four >> 2 & 0xfc0)
                | (four >> 4 & 0x3_f000)
                | (four >> 6 & 0xfc_0000);
            three.copy_from_slice(&packed.to_le_bytes()[..3]);
        }
        fours.len() * 4
    };
    bytes[(whole * bits as usize) / 8..].fill(0);
    for index in whole..codes.len() {
        put(bytes, bits, index, codes[index]);
    }
}

/// Unpacks codes that begin at a byte border. For 4 and 6 bits.
#[inline(always)]
pub(super) fn unpack(bits: u32, bytes: &[u8], codes: &mut [u8]) {
    let whole = if bits == 4 {
        let (pairs, _) = codes.as_chunks_mut::<2>();
        let count = pairs.len() * 2;
        for (pair, byte) in pairs.iter_mut().zip(bytes) {
            let byte = u16::from(*byte);
            *pair = ((byte | byte << 4) & 0x0f0f).to_le_bytes();
        }
        count
    } else {
        let (fours, _) = codes.as_chunks_mut::<4>();
        let count = fours.len() * 4;
        for (four, three) in fours.iter_mut().zip(bytes.as_chunks::<3>().0) {
            let packed = u32::from_le_bytes([three[0], three[1], three[2], 0]);
            let spread = (packed & 0x3f)
                | (packed & 0xfc0) << 2
                | (packed & 0x3_f000) << 4
                | (packed & 0xfc_0000) << 6;
            *four = spread.to_le_bytes();
        }
        count
    };
    for index in whole..codes.len() {
        codes[index] = get(bytes, bits, index);
    }
}
