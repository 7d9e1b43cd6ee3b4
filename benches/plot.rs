//! Bars that read at a glance: a panel for each row of a table, a colour for each contender, our goal as a line.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};

use crate::text_table::figure;

/// One picture.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Of its files.
    pub name: &'static str,
    /// Above the panels.
    pub title: String,
    /// Below the title: what the bars are, and which direction is better.
    pub subtitle: String,
    /// From left to right, then down.
    pub panels: Vec<Panel>,
}

/// The bars of one row.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Above the bars.
    pub title: String,
    /// One a contender.
    pub bars: Vec<Bar>,
    /// Our goal, on the same scale, and how it is written.
    pub goal: Option<(f64, String)>,
    /// How lengths stand for values.
    pub scale: Scale,
    /// More values that the axis shall reach, so that several panels can have the same.
    pub reach: Vec<f64>,
}

/// One contender's value.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Left of it.
    pub label: String,
    /// Of a contender, always the same.
    pub colour: &'static str,
    /// NaN where there is none; then `note` stands alone.
    pub value: f64,
    /// Right of it: the value as it is to be read, or why there is none.
    pub note: String,
}

impl Bar {
    /// With its value as the note.
    pub fn new(label: &str, colour: &'static str, value: f64) -> Bar {
        Bar { label: label.to_owned(), colour, value, note: figure(value) }
    }
}

/// How lengths stand for values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// A length says how many times, from the decade below the least.
    Logarithmic,
    /// A length says how much, from zero.
    Linear,
}

const COLUMNS: usize = 2;
const PANEL_WIDTH: f64 = 480.0;
const MARGIN: f64 = 24.0;
const HEAD_HEIGHT: f64 = 84.0;
const PANEL_HEAD: f64 = 40.0;
const PANEL_FOOT: f64 = 34.0;
const BAR_PITCH: f64 = 24.0;
const BAR_HEIGHT: f64 = 17.0;
const LABEL_WIDTH: f64 = 104.0;
/// Room for the figure behind the longest bar.
const NOTE_WIDTH: f64 = 62.0;
const PLOT_WIDTH: f64 = PANEL_WIDTH - LABEL_WIDTH - NOTE_WIDTH - 14.0;

const INK: &str = "#212529";
const FAINT_INK: &str = "#6c757d";
const GRID: &str = "#e9ecef";
const GOAL: &str = "#c2255c";

/// Pixels of the PNG for each unit of the SVG, so that it is sharp on a dense screen.
const PNG_SCALE: f32 = 2.0;

const STRINGS_TAKE_ALL: &str = "a string takes all that is written to it";

impl Plot {
    /// Writes `NAME.svg` and `NAME.png`.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let svg = self.svg();
        fs::write(directory.join(self.name).with_extension("png"), rasterized(&svg)?)?;
        fs::write(directory.join(self.name).with_extension("svg"), svg)
    }

    /// The picture itself.
    pub fn svg(&self) -> String {
        let rows: Vec<&[Panel]> = self.panels.chunks(COLUMNS).collect();
        let width = MARGIN * 2.0 + PANEL_WIDTH * self.panels.len().min(COLUMNS) as f64;
        let height = HEAD_HEIGHT + rows.iter().map(|row| row_height(row)).sum::<f64>() + 8.0;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" font-family=\"Ubuntu, 'DejaVu Sans', Arial, sans-serif\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        text(&mut svg, (MARGIN, 38.0), Style { size: 22.0, colour: INK, anchor: "start" }, &self.title);
        text(&mut svg, (MARGIN, 62.0), Style { size: 13.0, colour: FAINT_INK, anchor: "start" }, &self.subtitle);
        let mut top = HEAD_HEIGHT;
        for row in rows {
            for (column, panel) in row.iter().enumerate() {
                panel.draw(&mut svg, MARGIN + PANEL_WIDTH * column as f64, top);
            }
            top += row_height(row);
        }
        svg + "</svg>\n"
    }
}

fn row_height(row: &[Panel]) -> f64 {
    let bars = row.iter().map(|panel| panel.bars.len()).max().unwrap_or(0);
    PANEL_HEAD + BAR_PITCH * bars as f64 + PANEL_FOOT
}

impl Panel {
    fn draw(&self, svg: &mut String, left: f64, top: f64) {
        text(svg, (left, top + 16.0), Style { size: 15.0, colour: INK, anchor: "start" }, &self.title);
        let axis = Axis::of(self);
        let (from, first) = (left + LABEL_WIDTH, top + PANEL_HEAD);
        let bottom = first + BAR_PITCH * self.bars.len() as f64;
        for (value, label) in axis.ticks() {
            let x = from + axis.length(value);
            line(svg, (x, first - 4.0), (x, bottom), &format!("stroke=\"{GRID}\""));
            text(svg, (x, bottom + 13.0), Style { size: 10.0, colour: FAINT_INK, anchor: "middle" }, &label);
        }
        let tops = (0..).map(|index| first + BAR_PITCH * f64::from(index));
        self.bars.iter().zip(tops.clone()).for_each(|(bar, top)| bar.draw(svg, from, top, &axis));
        if let Some((goal, label)) = &self.goal {
            let x = from + axis.length(*goal);
            line(
                svg,
                (x, first - 6.0),
                (x, bottom),
                &format!("stroke=\"{GOAL}\" stroke-width=\"1.5\" stroke-dasharray=\"5 3\""),
            );
            text(svg, (x, first - 9.0), Style { size: 11.0, colour: GOAL, anchor: "middle" }, label);
        }
        // After the goal's line, which may run through them.
        self.bars.iter().zip(tops).for_each(|(bar, top)| bar.annotate(svg, from, top, &axis));
    }
}

impl Bar {
    fn draw(&self, svg: &mut String, left: f64, top: f64, axis: &Axis) {
        let baseline = top + BAR_HEIGHT * 0.75;
        text(svg, (left - 8.0, baseline), Style { size: 12.5, colour: INK, anchor: "end" }, &self.label);
        let length = self.length(axis);
        if length > 0.0 {
            writeln!(
                svg,
                "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"{BAR_HEIGHT}\" rx=\"2\" fill=\"{}\"/>",
                self.colour
            )
            .expect(STRINGS_TAKE_ALL);
        }
    }

    /// The value behind its end.
    fn annotate(&self, svg: &mut String, left: f64, top: f64, axis: &Axis) {
        let length = self.length(axis);
        let style = Style { size: 12.0, colour: if length > 0.0 { INK } else { FAINT_INK }, anchor: "start" };
        text(svg, (left + length + 5.0, top + BAR_HEIGHT * 0.75), style, &self.note);
    }

    fn length(&self, axis: &Axis) -> f64 {
        if self.value.is_finite() { axis.length(self.value).max(2.0) } else { 0.0 }
    }
}

/// The values between which the lengths of a panel lie.
struct Axis {
    scale: Scale,
    least: f64,
    most: f64,
}

impl Axis {
    fn of(panel: &Panel) -> Axis {
        let goal = panel.goal.as_ref().map(|(value, _)| *value);
        let values = || {
            panel
                .bars
                .iter()
                .map(|bar| bar.value)
                .chain(goal)
                .chain(panel.reach.iter().copied())
                .filter(|value| value.is_finite() && *value > 0.0)
        };
        let most = values().fold(f64::MIN_POSITIVE, f64::max);
        let least = values().fold(f64::INFINITY, f64::min).min(most);
        match panel.scale {
            // A bar of no length would say zero: the least is a fifth of a decade above the start at least.
            Scale::Logarithmic => Axis { scale: panel.scale, least: 10_f64.powf((least / 1.6).log10().floor()), most },
            Scale::Linear => Axis { scale: panel.scale, least: 0.0, most },
        }
    }

    fn length(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Logarithmic => (value / self.least).log10() / (self.most / self.least).log10(),
            Scale::Linear => value / self.most,
        };
        PLOT_WIDTH * share.clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Logarithmic => {
                // Few decades need more than their powers of ten.
                let times: &[f64] = if self.most / self.least < 100.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let decades = std::iter::successors(Some(self.least), |value| Some(value * 10.0));
                let ticks = decades
                    .take_while(|value| *value <= self.most)
                    .flat_map(|value| times.iter().map(move |times| value * times));
                ticks.filter(|value| *value <= self.most).map(|value| (value, tick_label(value))).collect()
            }
            Scale::Linear => {
                let step = round_step(self.most / 4.0);
                let ticks = (0..).map(|index| f64::from(index) * step).take_while(|value| *value <= self.most);
                ticks.map(|value| (value, tick_label(value))).collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, about `step`.
fn round_step(step: f64) -> f64 {
    let decade = 10_f64.powf(step.log10().floor());
    let times = if step / decade < 1.5 {
        1.0
    } else if step / decade < 3.5 {
        2.0
    } else {
        5.0
    };
    times * decade
}

fn tick_label(value: f64) -> String {
    if value >= 1e6 {
        format!("{} M", value / 1e6)
    } else if value >= 1e3 {
        format!("{} k", value / 1e3)
    } else {
        // Powers of ten below one are not exact.
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

#[derive(Clone, Copy)]
struct Style {
    size: f64,
    colour: &'static str,
    anchor: &'static str,
}

fn text(svg: &mut String, (x, y): (f64, f64), style: Style, content: &str) {
    let escaped = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let Style { size, colour, anchor } = style;
    writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{colour}\" text-anchor=\"{anchor}\" \
         paint-order=\"stroke\" stroke=\"#ffffff\" stroke-width=\"3\">{escaped}</text>"
    )
    .expect(STRINGS_TAKE_ALL);
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), stroke: &str) {
    writeln!(svg, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {stroke}/>")
        .expect(STRINGS_TAKE_ALL);
}

/// With a font that a crate brings, so that the picture is the same on every machine.
fn rasterized(svg: &str) -> io::Result<Vec<u8>> {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
    let family = fonts.faces().next().map(|face| face.families[0].0.clone()).unwrap_or_default();
    fonts.set_sans_serif_family(family);
    let options = Options { fontdb: Arc::new(fonts), ..Options::default() };
    let tree = Tree::from_str(svg, &options).map_err(io::Error::other)?;
    let size = tree.size();
    let (width, height) = ((size.width() * PNG_SCALE).ceil() as u32, (size.height() * PNG_SCALE).ceil() as u32);
    let mut pixels = Pixmap::new(width, height).ok_or_else(|| io::Error::other("the picture has no size"))?;
    resvg::render(&tree, Transform::from_scale(PNG_SCALE, PNG_SCALE), &mut pixels.as_mut());
    compressed(&pixels)
}

/// Without an alpha channel, since the ground is opaque, and at the best compression: bars are few colours.
fn compressed(pixels: &Pixmap) -> io::Result<Vec<u8>> {
    let rgb: Vec<u8> = pixels.data().chunks_exact(4).flat_map(|pixel| &pixel[..3]).copied().collect();
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, pixels.width(), pixels.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::Best);
    encoder.write_header()?.write_image_data(&rgb)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(scale: Scale, values: &[f64]) -> Panel {
        Panel {
            title: "a < b".to_owned(),
            bars: values.iter().map(|&value| Bar::new("bar", "#000000", value)).collect(),
            goal: Some((20.0, "goal 20".to_owned())),
            scale,
            reach: Vec::new(),
        }
    }

    #[test]
    fn the_most_is_as_long_as_the_axis_and_no_bar_is_without_length() {
        for scale in [Scale::Logarithmic, Scale::Linear] {
            let axis = Axis::of(&panel(scale, &[1.0, 500.0]));
            assert!((axis.length(500.0) - PLOT_WIDTH).abs() < 1e-6);
            assert!(axis.length(1.0) > 0.0);
        }
    }

    #[test]
    fn few_decades_have_ticks_in_between() {
        let ticks = Axis::of(&panel(Scale::Logarithmic, &[18.0, 60.0])).ticks();
        let labels: Vec<&str> = ticks.iter().map(|(_, label)| label.as_str()).collect();
        assert_eq!(labels, ["10", "20", "50"]);
    }

    #[test]
    fn a_picture_with_a_missing_bar_can_be_drawn() {
        let panels = vec![panel(Scale::Logarithmic, &[3.0, f64::NAN]), panel(Scale::Linear, &[f64::NAN])];
        let plot = Plot { name: "test", title: "a & b".to_owned(), subtitle: String::new(), panels };
        let png = rasterized(&plot.svg()).expect("the picture is well formed");
        assert!(png.starts_with(b"\x89PNG"));
    }
}
