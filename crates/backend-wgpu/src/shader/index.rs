//! How an operand's element is found from positions in an index space, as WGSL text.

/// A strided view over an index space: element `offset + sum(coordinate * stride)`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct View {
    /// Extents of the index space and strides of the operand, outermost first.
    pub axes: Vec<(usize, usize)>,
    /// First element.
    pub offset: usize,
}

impl View {
    /// Over `dims`, in the simplest form: no axes of size 1, neighbours merged where their strides
    /// allow it.
    pub(crate) fn new(dims: &[usize], strides: &[usize], offset: usize) -> Self {
        let mut axes: Vec<(usize, usize)> = Vec::new();
        for (&dim, &stride) in dims.iter().zip(strides).filter(|(dim, _)| **dim != 1) {
            match axes.last_mut() {
                Some((outer, step)) if *step == stride * dim => {
                    *outer *= dim;
                    *step = stride;
                }
                _ => axes.push((dim, stride)),
            }
        }
        Self { axes, offset }
    }

    /// Whether element `i` of the space is element `i` of the operand.
    pub(crate) fn is_full(&self) -> bool {
        self.offset == 0 && matches!(self.axes[..], [] | [(_, 1)])
    }

    /// Whether all read one element.
    pub(crate) fn is_scalar(&self) -> bool {
        self.axes.iter().all(|&(_, stride)| stride == 0)
    }

    /// Whether four neighbours that begin at a multiple of four are four neighbours of the operand
    /// that begin at one.
    pub(crate) fn is_quads(&self) -> bool {
        let Some((&(last, step), outer)) = self.axes.split_last() else { return false };
        let fits = |n: usize| n.is_multiple_of(4);
        step == 1
            && (fits(last) || outer.is_empty())
            && fits(self.offset)
            && outer.iter().all(|&(_, stride)| fits(stride))
    }

    /// Whether four neighbours that begin at a multiple of four read one element.
    pub(crate) fn is_splat(&self) -> bool {
        self.axes.last().is_some_and(|&(last, step)| step == 0 && last.is_multiple_of(4))
    }

    /// The element at position `at`, a WGSL expression.
    pub(crate) fn element(&self, at: &str) -> String {
        let mut terms = Vec::new();
        let mut inner = 1;
        for (n, &(dim, stride)) in self.axes.iter().enumerate().rev() {
            if stride != 0 {
                let coordinate = coordinate(at, inner, (n > 0).then_some(dim));
                terms.push(match stride {
                    1 => coordinate,
                    _ => format!("{coordinate} * {stride}u"),
                });
            }
            inner *= dim;
        }
        if self.offset > 0 || terms.is_empty() {
            terms.push(format!("{}u", self.offset));
        }
        terms.reverse();
        terms.join(" + ")
    }
}

/// The coordinate of `at` along an axis with `inner` elements inside; `None` for the outermost
/// axis, which needs no remainder.
pub(crate) fn coordinate(at: &str, inner: usize, dim: Option<usize>) -> String {
    let divided = match inner {
        0 | 1 => at.to_owned(),
        _ => format!("({at} / {inner}u)"),
    };
    match dim {
        Some(dim) => format!("({divided} % {}u)", dim.max(1)),
        None => divided,
    }
}

/// The coordinate of `at` along axis `axis` of `dims`.
pub(crate) fn axis_coordinate(at: &str, dims: &[usize], axis: usize) -> String {
    let inner: usize = dims[axis + 1..].iter().product();
    let outermost = dims[..axis].iter().all(|&dim| dim == 1);
    coordinate(at, inner, (!outermost).then_some(dims[axis]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_take_their_simplest_form() {
        let view = View::new(&[2, 1, 3, 4], &[12, 7, 4, 1], 0);
        assert!(view.is_full(), "{view:?}");
        assert!(View::new(&[5, 8], &[0, 1], 0).is_quads());
        assert!(!View::new(&[5, 6], &[0, 1], 0).is_quads());
        assert!(View::new(&[5, 8], &[1, 0], 0).is_splat());
        assert!(View::new(&[5, 8], &[0, 0], 3).is_scalar());
    }

    #[test]
    fn elements_are_sums_of_coordinates() {
        let transposed = View::new(&[3, 5], &[1, 3], 0);
        assert_eq!(transposed.element("i"), "(i / 5u) + (i % 5u) * 3u");
        assert_eq!(View::new(&[3, 5], &[0, 0], 2).element("i"), "2u");
        assert_eq!(View::new(&[3, 5], &[10, 1], 4).element("i"), "4u + (i / 5u) * 10u + (i % 5u)");
    }
}
