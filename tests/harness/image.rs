//! The image of the Dockerfile, made without a builder.

use std::path::Path;

/// Where Debian keeps the authorities of the web.
const WEB_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Options of `tests/cluster/image.py` for an image with this program, laid out as the Dockerfile's. A program that is
/// not linked statically brings its libraries along.
pub fn image_like_dockerfile(program: &Path) -> Vec<String> {
    let mut options = vec![
        "--bare".to_owned(),
        "--program".to_owned(),
        format!("{}:/usr/bin/finial", program.display()),
    ];
    if Path::new(WEB_AUTHORITIES).exists() {
        options.extend([
            "--file".to_owned(),
            format!("{WEB_AUTHORITIES}:{WEB_AUTHORITIES}"),
        ]);
    }
    options.extend(
        [
            "--link",
            "/usr/bin/finial:/opt/spire/bin/spire-server",
            "--link",
            "/usr/bin/finial:/opt/spire/bin/spire-agent",
            "--env",
            "PATH=/usr/bin:/opt/spire/bin",
            "--user",
            "1000:1000",
            "--entrypoint",
            "/usr/bin/finial",
        ]
        .map(str::to_owned),
    );
    options
}
