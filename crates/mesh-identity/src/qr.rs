//! Invites as QR codes, for a terminal and as SVG; error correction level L throughout.

use qrcode::render::{svg, unicode};
use qrcode::types::QrError;
use qrcode::{EcLevel, QrCode, Version};
use thiserror::Error;

/// The text does not fit any QR code (2953 bytes at level L).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the text is too long for a qr code")]
pub struct TooLong;

impl From<QrError> for TooLong {
    fn from(_: QrError) -> Self {
        Self
    }
}

/// Two rows of modules a line, light on dark, with the quiet zone that scanners need. Made of Unicode half blocks, so it
/// is for terminals with a dark background; on a light one it is inverted, which phones read too.
///
/// # Errors
/// [`TooLong`]; no invite is.
pub fn terminal(text: &str) -> Result<String, TooLong> {
    Ok(encode(text)?
        .render::<unicode::Dense1x2>()
        .dark_color(unicode::Dense1x2::Light)
        .light_color(unicode::Dense1x2::Dark)
        .build())
}

/// A standalone SVG document, dark on white.
///
/// # Errors
/// [`TooLong`]; no invite is.
pub fn svg(text: &str) -> Result<String, TooLong> {
    Ok(encode(text)?.render::<svg::Color<'_>>().min_dimensions(240, 240).build())
}

/// The version of the code, 1 to 40: it has `17 + 4 * version` modules a side.
///
/// # Errors
/// [`TooLong`]; no invite is.
pub fn version(text: &str) -> Result<u8, TooLong> {
    match encode(text)?.version() {
        Version::Normal(version) | Version::Micro(version) => u8::try_from(version).map_err(|_| TooLong),
    }
}

fn encode(text: &str) -> Result<QrCode, TooLong> {
    Ok(QrCode::with_error_correction_level(text, EcLevel::L)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_hold_the_whole_code() {
        let text = "qmt://mesh/join/".to_owned() + &"A".repeat(255);
        let modules = 17 + 4 * usize::from(version(&text).expect("fits"));
        let terminal = terminal(&text).expect("fits");
        assert_eq!(terminal.lines().count(), (modules + 8).div_ceil(2));
        assert!(terminal.lines().all(|line| line.chars().count() == modules + 8));
        let svg = svg(&text).expect("fits");
        assert!(svg.starts_with("<?xml") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn too_long_a_text_is_an_error() {
        assert_eq!(version(&"a".repeat(2953)), Ok(40));
        assert_eq!(terminal(&"a".repeat(2954)), Err(TooLong));
    }
}
