//! Headers of VDIs, as VirtualBox writes them.

/// One of a dynamic image, or of a difference of its `parent`; the disk has 8 MiB.
pub fn header(uuid: &str, parent: Option<&str>) -> [u8; 512] {
    let bytes = |uuid: &str| {
        let digits = uuid.replace('-', "");
        let mut bytes: Vec<u8> =
            (0..16).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect();
        for group in [0..4, 4..6, 6..8] {
            bytes[group].reverse();
        }
        bytes
    };
    let mut header = [0; 512];
    header[64..72].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe, 1, 0, 1, 0]);
    header[76] = if parent.is_some() { 4 } else { 1 };
    header[368..376].copy_from_slice(&(8_u64 << 20).to_le_bytes());
    header[392..408].copy_from_slice(&bytes(uuid));
    if let Some(parent) = parent {
        header[424..440].copy_from_slice(&bytes(parent));
    }
    header
}
