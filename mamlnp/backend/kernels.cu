// The kernels of reference.py for CUDA. Each computes one element of its result, number `at`, so
// that nothing depends on the order in which threads run (but for put, whose repeats add up as they
// come). They are templates over the elements' type T and the type of numbers I: what calls them is
// generated (see cuda_source.py), with sides known to the compiler where they are known to us.
//
// Images are channels last.

typedef long long i8;
typedef int i4;
typedef unsigned char u1;
typedef bool b1;
typedef float f4;
typedef double f8;

#define inf __longlong_as_double(0x7ff0000000000000LL)
#define EACH(I, at, count)                                                                   \
    for (I at = (I)blockIdx.x * (I)blockDim.x + (I)threadIdx.x; at < (count);                \
         at += (I)gridDim.x * (I)blockDim.x)

// (n, h, w, c) -> (n, oh, ow, kh, kw, c), zeros outside.
template <typename T, typename I>
__device__ void patches(I at, const T *x, T *out, I n, I h, I w, I c, I oh, I ow, I kh, I kw,
                        I stride, I top, I left) {
    I rest = at;
    I k = rest % c; rest /= c;
    I dj = rest % kw; rest /= kw;
    I di = rest % kh; rest /= kh;
    I j = rest % ow; rest /= ow;
    I i = rest % oh; rest /= oh;
    I row = i * stride + di - top, column = j * stride + dj - left;
    bool inside = 0 <= row && row < h && 0 <= column && column < w;
    out[at] = inside ? x[((rest * h + row) * w + column) * c + k] : (T)0;
}

// The transpose: every pixel sums what its windows hold of it, in the order of reference.fold.
template <typename T, typename I>
__device__ void fold(I at, const T *p, T *out, I n, I h, I w, I c, I oh, I ow, I kh, I kw,
                     I stride, I top, I left) {
    I rest = at;
    I k = rest % c; rest /= c;
    I column = rest % w; rest /= w;
    I row = rest % h; rest /= h;
    T sum = 0;
    for (I di = 0; di < kh; di++) {
        I i = row + top - di;
        if (i < 0 || i % stride || i / stride >= oh) continue;
        i /= stride;
        for (I dj = 0; dj < kw; dj++) {
            I j = column + left - dj;
            if (j < 0 || j % stride || j / stride >= ow) continue;
            j /= stride;
            sum += p[((((rest * oh + i) * ow + j) * kh + di) * kw + dj) * c + k];
        }
    }
    out[at] = sum;
}

// NaN wins, as in NumPy's argmax.
template <typename T>
__device__ bool beats(T value, T best) {
    return value > best || (value != value && best == best);
}

// Where each window's first maximum sits.
template <typename T, typename I>
__device__ void pool_positions(I at, const T *x, i8 *out, I n, I h, I w, I c, I oh, I ow, I kh,
                               I kw, I stride) {
    I rest = at;
    I k = rest % c; rest /= c;
    I j = rest % ow; rest /= ow;
    I i = rest % oh; rest /= oh;
    I corner = ((rest * h + i * stride) * w + j * stride) * c + k, place = corner;
    T best = x[corner];
    for (I di = 0; di < kh; di++)
        for (I dj = 0; dj < kw; dj++) {
            I here = corner + (di * w + dj) * c;
            if (beats(x[here], best)) { best = x[here]; place = here; }
        }
    out[at] = place;
}

// Which element of each window is its first maximum, 0, 1, ...; windows do not overlap.
template <typename T, typename I>
__device__ void pool_winners(I at, const T *x, u1 *out, I n, I h, I w, I c, I oh, I ow, I kh,
                             I kw) {
    I rest = at;
    I k = rest % c; rest /= c;
    I j = rest % ow; rest /= ow;
    I i = rest % oh; rest /= oh;
    I corner = ((rest * h + i * kh) * w + j * kw) * c + k, winner = 0;
    T best = x[corner];
    for (I d = 1; d < kh * kw; d++) {
        T value = x[corner + (d / kw * w + d % kw) * c];
        if (beats(value, best)) { best = value; winner = d; }
    }
    out[at] = (u1)winner;
}

// From every window the element that won.
template <typename T, typename I>
__device__ void pool_take(I at, const T *x, const u1 *winners, T *out, I n, I h, I w, I c, I oh,
                          I ow, I kh, I kw) {
    I rest = at, d = winners[at];
    I k = rest % c; rest /= c;
    I j = rest % ow; rest /= ow;
    I i = rest % oh; rest /= oh;
    out[at] = x[((rest * h + i * kh + d / kw) * w + j * kw + d % kw) * c + k];
}

// The transpose: every value to where its window's winner is, else 0.
template <typename T, typename I>
__device__ void pool_put(I at, const T *x, const u1 *winners, T *out, I n, I h, I w, I c, I oh,
                         I ow, I kh, I kw) {
    I rest = at;
    I k = rest % c; rest /= c;
    I column = rest % w; rest /= w;
    I row = rest % h; rest /= h;
    I i = row / kh, j = column / kw, d = row % kh * kw + column % kw;
    I window = ((rest * oh + i) * ow + j) * c + k;
    bool won = i < oh && j < ow && winners[window] == d;
    out[at] = won ? x[window] : (T)0;
}

// The flat position that an index means, counted from the end if negative; -1 out of range.
__device__ i8 placed(i8 index, i8 size, i8 *flag) {
    i8 place = index < 0 ? index + size : index;
    if (0 <= place && place < size) return place;
    *flag = 1;
    return -1;
}

// The elements at flat positions; one out of range sets the flag.
template <typename T, typename I>
__device__ void take(I at, const T *x, const i8 *indices, T *out, I count, I size, i8 *flag) {
    i8 place = placed(indices[at], size, flag);
    out[at] = place < 0 ? (T)0 : x[place];
}

// Adds every element at its flat position, into zeros; one out of range sets the flag.
template <typename T, typename I>
__device__ void put(I at, const T *x, const i8 *indices, T *out, I count, I size, i8 *flag) {
    i8 place = placed(indices[at], size, flag);
    if (place >= 0) atomicAdd(out + place, x[at]);
}

// The labels; one that is no class sets the flag.
template <typename T, typename I>
__device__ void class_labels(I at, const T *x, T *out, I count, I num_classes, i8 *flag) {
    out[at] = x[at];
    if (x[at] < 0 || x[at] >= num_classes) *flag = 1;
}

// An array as it is.
template <typename T, typename I>
__device__ void copy(I at, const T *x, T *out) {
    out[at] = x[at];
}
