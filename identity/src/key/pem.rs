//! PEM text (RFC 7468).

use data_encoding::BASE64;

const LINE: usize = 64;

/// One PEM block with the given label, ending in a newline.
///
/// A block with a private key is secret: the caller keeps it so.
pub fn pem_block(label: &str, der: &[u8]) -> String {
    let body = zeroize::Zeroizing::new(BASE64.encode(der));
    let mut text = String::with_capacity(body.len() + body.len() / LINE + 2 * label.len() + 36);
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaks_lines_after_64_characters() {
        let text = pem_block("X", &[0; 49]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "-----BEGIN X-----");
        assert_eq!(lines[1].len(), 64);
        assert_eq!(lines[2].len(), 4);
        assert_eq!(lines[3], "-----END X-----");
        assert!(text.ends_with('\n'));
    }
}
