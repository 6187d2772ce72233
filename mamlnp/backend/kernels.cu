// The kernels of reference.py for CUDA: one thread makes one element of the result, so that nothing
// depends on the order in which threads run (but for put, whose repeats add up as they come).
//
// Images are channels last. Every kernel exists for each element type, as NAME_f4, NAME_f8, ...

typedef long long i8;
typedef int i4;
typedef unsigned char u1;
typedef float f4;
typedef double f8;

#define EACH(index, count)                                                        \
    for (i8 index = blockIdx.x * (i8)blockDim.x + threadIdx.x; index < (count);   \
         index += (i8)gridDim.x * blockDim.x)

// (n, h, w, c) -> (n, oh, ow, kh, kw, c), zeros outside.
#define PATCHES(T)                                                                \
    extern "C" __global__ void patches_##T(const T *x, T *out, i8 n, i8 h, i8 w, i8 c, i8 oh, \
                                           i8 ow, i8 kh, i8 kw, i8 stride, i8 top, i8 left) { \
        EACH(at, n * oh * ow * kh * kw * c) {                                     \
            i8 rest = at;                                                         \
            i8 k = rest % c; rest /= c;                                           \
            i8 dj = rest % kw; rest /= kw;                                        \
            i8 di = rest % kh; rest /= kh;                                        \
            i8 j = rest % ow; rest /= ow;                                         \
            i8 i = rest % oh; rest /= oh;                                         \
            i8 row = i * stride + di - top, column = j * stride + dj - left;      \
            bool inside = 0 <= row && row < h && 0 <= column && column < w;       \
            out[at] = inside ? x[((rest * h + row) * w + column) * c + k] : (T)0; \
        }                                                                         \
    }

// The transpose: every pixel sums what its windows hold of it, in the order of reference.fold.
#define FOLD(T)                                                                   \
    extern "C" __global__ void fold_##T(const T *p, T *out, i8 n, i8 h, i8 w, i8 c, i8 oh,    \
                                        i8 ow, i8 kh, i8 kw, i8 stride, i8 top, i8 left) {    \
        EACH(at, n * h * w * c) {                                                 \
            i8 rest = at;                                                         \
            i8 k = rest % c; rest /= c;                                           \
            i8 column = rest % w; rest /= w;                                      \
            i8 row = rest % h; rest /= h;                                         \
            T sum = 0;                                                            \
            for (i8 di = 0; di < kh; di++) {                                      \
                i8 i = row + top - di;                                            \
                if (i < 0 || i % stride || i / stride >= oh) continue;            \
                i /= stride;                                                      \
                for (i8 dj = 0; dj < kw; dj++) {                                  \
                    i8 j = column + left - dj;                                    \
                    if (j < 0 || j % stride || j / stride >= ow) continue;        \
                    j /= stride;                                                  \
                    sum += p[((((rest * oh + i) * ow + j) * kh + di) * kw + dj) * c + k];     \
                }                                                                 \
            }                                                                     \
            out[at] = sum;                                                        \
        }                                                                         \
    }

// Where each window's first maximum sits; NaN wins, as in NumPy's argmax.
#define POOL_POSITIONS(T)                                                         \
    extern "C" __global__ void pool_positions_##T(const T *x, i8 *out, i8 n, i8 h, i8 w, i8 c, \
                                                  i8 oh, i8 ow, i8 kh, i8 kw, i8 stride) {    \
        EACH(at, n * oh * ow * c) {                                               \
            i8 rest = at;                                                         \
            i8 k = rest % c; rest /= c;                                           \
            i8 j = rest % ow; rest /= ow;                                         \
            i8 i = rest % oh; rest /= oh;                                         \
            i8 place = ((rest * h + i * stride) * w + j * stride) * c + k;        \
            T best = x[place];                                                    \
            i8 corner = place;                                                    \
            for (i8 di = 0; di < kh; di++)                                        \
                for (i8 dj = 0; dj < kw; dj++) {                                  \
                    i8 here = corner + (di * w + dj) * c;                         \
                    T value = x[here];                                            \
                    if (value > best || (value != value && best == best)) {       \
                        best = value;                                             \
                        place = here;                                             \
                    }                                                             \
                }                                                                 \
            out[at] = place;                                                      \
        }                                                                         \
    }

// Adds every value at its flat position, counted from the end if negative; out is zeros before.
#define PUT(T)                                                                    \
    extern "C" __global__ void put_##T(const T *values, const i8 *positions, T *out, i8 count,   \
                                       i8 size) {                                 \
        EACH(at, count) {                                                         \
            i8 place = positions[at] + (positions[at] < 0 ? size : 0);            \
            if (0 <= place && place < size) atomicAdd(out + place, values[at]);   \
        }                                                                         \
    }

#define ALL(T) PATCHES(T) FOLD(T) POOL_POSITIONS(T)
ALL(f4)
ALL(f8)
ALL(i8)
ALL(i4)
ALL(u1)
PUT(f4)
PUT(f8)
