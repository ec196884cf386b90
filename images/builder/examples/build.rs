//! Builds an image and tells what it is: `cargo run -p tornblk-image --example build -- 7.2`.

use std::time::Instant;

use tornblk_image::{Request, build};

fn main() -> Result<(), tornblk_image::ImageError> {
    let given = std::env::args().nth(1).unwrap_or(tornblk_image::DEFAULT_KERNEL.into());
    let start = Instant::now();
    let mut request = Request::new(given.parse()?);
    request.modules = std::env::args().nth(2).map(Into::into);
    let image = build(&request, &mut |doing| {
        println!("{:6.2} s  {doing}", start.elapsed().as_secs_f64());
    })?;
    println!("{:6.2} s  {} {}", start.elapsed().as_secs_f64(), image.release, image.dir.display());
    println!("{} {}", image.lock.kernel.format, image.load_order(&["xfs"]).len());
    Ok(())
}
