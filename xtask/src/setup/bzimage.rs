//! Finding the compressed kernel inside a bzImage (the kernel's Documentation/arch/x86/boot.rst).

use anyhow::{Result, bail};

/// Offsets of the setup header's fields.
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// Compressed formats that Debian uses or used, by their first bytes, and the program that unpacks them.
const FORMATS: [(&[u8], &str); 3] =
    [(&[0x28, 0xb5, 0x2f, 0xfd], "zstd"), (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"), (&[0x1f, 0x8b], "gzip")];

/// The compressed vmlinux.
#[derive(Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    /// One compressed stream, without the size that the build appends to it.
    pub bytes: &'a [u8],
    /// The program that unpacks it.
    pub program: &'static str,
}

/// Finds the payload of a bzImage.
///
/// # Errors
/// The image is none, is cut off, or is compressed in a way that is not known here.
pub fn payload(image: &[u8]) -> Result<Payload<'_>> {
    if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        bail!("the kernel is no bzImage");
    }
    let (Some(offset), Some(length)) = (word(image, PAYLOAD_OFFSET), word(image, PAYLOAD_LENGTH)) else {
        bail!("the kernel's header is cut off");
    };
    let sectors = usize::from(image[SETUP_SECTORS].max(1));
    let start = (sectors + 1) * 512 + offset;
    let Some(bytes) = image.get(start..start.saturating_add(length)) else {
        bail!("the kernel is cut off: {length} bytes at {start} of {}", image.len());
    };
    let Some((_, program)) = FORMATS.iter().find(|(magic, _)| bytes.starts_with(magic)) else {
        bail!(
            "the kernel is compressed in an unknown way (first bytes {:02x?})",
            &bytes[..bytes.len().min(6)]
        );
    };
    // Every format but gzip, which has its size inside, gets it appended (scripts/Makefile.lib, size_append).
    let appended = if *program == "gzip" { 0 } else { 4 };
    let Some(end) = length.checked_sub(appended) else { bail!("the kernel's payload is empty") };
    Ok(Payload { bytes: &bytes[..end], program })
}

fn word(image: &[u8], at: usize) -> Option<usize> {
    let bytes: [u8; 4] = image.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(bytes)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2048];
        image[SETUP_SECTORS] = 3;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET] = 7;
        image[PAYLOAD_LENGTH] = u8::try_from(payload.len()).unwrap();
        image.extend([0; 7]);
        image.extend(payload);
        image
    }

    #[test]
    fn the_payload_is_found_without_the_appended_size() {
        let zstd = [0x28, 0xb5, 0x2f, 0xfd, 9, 9, 1, 2, 3, 4];
        let image = image(&zstd);
        assert_eq!(payload(&image).unwrap(), Payload { bytes: &zstd[..6], program: "zstd" });
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(payload(b"short").is_err());
        let mut cut = image(&[0x1f, 0x8b, 0, 0]);
        cut.pop();
        assert!(payload(&cut).unwrap_err().to_string().contains("cut off"));
        let unknown = image(b"lzo?....");
        assert!(payload(&unknown).unwrap_err().to_string().contains("unknown way"));
    }
}
