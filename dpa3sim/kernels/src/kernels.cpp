// A repflow layer (docs/model.md#the-repflow-layer), forward and backward, centre by centre, and the
// matrix products of the nodes, which the caller puts between.
//
// What kernels.py does with a dozen passes over memory happens here for one centre at a time, with
// everything in between in registers and in the cache: the accumulators of a small matrix product
// are the pre-activations, which go through the activation straight into sums and residuals. The
// backward pass computes them again. Centres are independent, so that threads share nothing but the
// read-only inputs, and results do not depend on the number of threads.
//
// Names are those of kernels.py; d_x is dE/dx. Arrays are row-major; "packed" rows are padded with
// zeros to a multiple of PAD elements. A packed matrix is divided into panels of PANEL such columns,
// one after the other: what a tile reads of it lies together, and fits into the first-level cache.
// Nothing here knows torch or Python.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "simd.hpp"

namespace {

using namespace simd;

constexpr int PAD = 16;
// Rows and vectors of a tile: as many accumulators as there are registers for.
#if VECTOR_BYTES == 64
constexpr int TILE_ROWS = 6, TILE_VECTORS = 4;
#elif VECTOR_BYTES == 32
constexpr int TILE_ROWS = 6, TILE_VECTORS = 2;
#else
constexpr int TILE_ROWS = 4, TILE_VECTORS = 4;
#endif

template <class T> constexpr int64_t PANEL = TILE_VECTORS * width<T>;

int64_t padded(int64_t n) { return (n + PAD - 1) / PAD * PAD; }

enum Activation { SILUT, RELU, GELU, TANH, RELU6, SOFTPLUS, SIGMOID, LINEAR };

}  // namespace

// One linear map, packed for both directions.
template <class T> struct Map {
    const T *matrix;      // packed (rows, columns)
    const T *transposed;  // packed (columns, rows)
};

// out = start + left times right.
template <class T> struct Product {
    int64_t rows, depth, columns;
    const T *left;
    int64_t left_stride;
    const T *right;  // packed (depth, columns)
    const T *start;  // null for zeros; its stride is zero for a bias
    int64_t start_stride;
    T *out;  // may be `start`
    int64_t out_stride;
};

// The nodes of a layer, after their matrix products.
template <class T> struct Nodes {
    int64_t n_rows, n, chunks, activation;
    double threshold, alpha, beta, keep;
    const T *node, *self_pre, *sym_pre, *v3, *rho;  // rho: (2 + chunks, n)
    int64_t self_stride;
    T *new_node;
    const T *d_node;
    T *d_self, *d_sym, *d_v3;
    int64_t d_self_stride;
};

// Sums over the edges that point to each row, in a fixed order.
template <class T> struct Incoming {
    int64_t n_rows, n_edges, projection_width, node_width;
    const int64_t *edges, *start;  // sorted by the row that they point to
    const T *projection, *node;
    T *projection_sum, *d_node;  // the second is added to
};

template <class T> struct Layer {
    // Sizes. message = H n_dim; angle_input: leading channels of an edge that enter angle maps.
    int64_t n_rows, n, e, a, message, angle_input, axis;
    int64_t edges, angles, angle_self;  // what there is to do: LayerPlan
    int64_t smooth, sequential;
    int64_t activation;
    double threshold, alpha, beta;  // SiLUT; SiLU has an infinite threshold
    double edge_keep, angle_keep;
    // The layout: (n_rows,) each.
    const int64_t *k, *m, *edge_start, *angle_edge_start, *angle_start;
    const int64_t *neighbour;  // (n_edges,)
    // Weights.
    Map<T> edge_message, edge_self;          // e -> message, e -> e
    Map<T> angle_message, angle_update;      // a -> e, a -> a
    Map<T> other_message, other_update;      // angle_input -> e, a: the edge k of an angle
    Map<T> receiver_message, receiver_update;  // the edge q
    Map<T> edge_angle;                       // e -> e
    const T *edge_angle_bias, *rho_self, *rho_angle, *rho_update;
    // Weighting and features of the layer's start.
    const T *symmetrise, *message_weight, *angle_weight, *other;
    const T *node, *edge, *angle;              // rows of n, e, a
    const T *own_edge, *own_angle, *projected;  // rows of the centre's parts, of the neighbours'
    int64_t own_stride, projected_stride;
    // Forward: results.
    T *psi, *v3, *new_edge, *new_angle;  // (n_rows, 3, e + n), (n_rows, message), ...
    T *symmetrised;                      // (n_rows, axis (e + n)), times 3
    T *reduced;                          // (n_angle_edges, e): R, kept for the backward pass
    // Backward: gradients.
    const T *d_symmetrised, *d_v3;
    T *d_edge, *d_angle;  // of the layer's results; replaced by those of its start
    T *d_symmetrise, *d_message_weight, *d_angle_weight;  // added to
    T *d_other;  // added to for angle-edges; null where `other` is constant
    T *d_own_edge, *d_own_angle;
    int64_t d_own_stride;
    T *incoming_projection, *incoming_node;  // (n_edges, message + e), (n_edges, n); or null
    // Gradients with respect to the weights instead of the geometry, or null: see Places. Centres
    // are divided into n_parts, each with its own sums, whatever the number of threads.
    int64_t n_parts;
    double *part_sums;    // (n_parts, size)
    double *weight_sums;  // (size,), added to
};

// total += left transposed times right.
template <class T> struct Outer {
    int64_t rows, left_columns, right_columns;
    const T *left;
    int64_t left_stride;
    const T *right;
    int64_t right_stride;
    double *total;
    int64_t total_stride;
};

// -- activations ------------------------------------------------------------------------------------

// The usual case: SiLUT. Both branches are made of one sigmoid, as tanh(y) = 2 sigmoid(2 y) - 1:
// a jump to the upper one, which a few elements in a hundred reach, would be predicted badly.
template <class T> struct Silut {
    T threshold, steepness, upper;  // of the upper branch: 2 alpha, and its value at s = 0

    template <class L> explicit Silut(const L &l)
        : threshold(T(l.threshold)), steepness(T(2 * l.alpha)), upper(T(l.beta - 1)) {}

    void value(Vec<T> &x) const {
        auto above = x > threshold;  // which a NaN is not
        Vec<T> s = sigmoid(above ? (x - threshold) * steepness : x);
        x = s * (above ? splat(T(2)) : x) + (above ? splat(upper) : splat(T(0)));
    }

    void value_and_slope(Vec<T> &x, Vec<T> &slope) const {
        auto above = x > threshold;  // which a NaN is not
        Vec<T> s = sigmoid(above ? (x - threshold) * steepness : x);
        Vec<T> factor = above ? splat(2 * steepness) : x, one = above ? splat(T(0)) : splat(T(1));
        slope = s * (factor * (T(1) - s) + one);
        x = s * (above ? splat(T(2)) : x) + (above ? splat(upper) : splat(T(0)));
    }
};

// All others, element by element with the functions of the C library.
template <class T> struct General {
    Activation kind;

    template <class L> explicit General(const L &l) : kind(Activation(l.activation)) {}

    void value(Vec<T> &x) const {
        Vec<T> slope;
        value_and_slope(x, slope);
    }

    // Not inlined, as it is long beside a call, and many places need it.
    __attribute__((noinline)) void value_and_slope(Vec<T> &x, Vec<T> &slope) const {
        slope = Vec<T>{};
        for (int i = 0; i < width<T>; ++i) {
            T y, d;
            one(x[i], y, d);
            x[i] = y;
            slope[i] = d;
        }
    }

    void one(T x, T &y, T &d) const {
        switch (kind) {
        case RELU:
            y = x > 0 ? x : 0;
            d = x > 0;
            break;
        case RELU6:
            y = x < 0 ? 0 : x > 6 ? 6 : x;
            d = x > 0 && x < 6;
            break;
        case TANH:
            y = std::tanh(x);
            d = 1 - y * y;
            break;
        case SIGMOID:
            y = 1 / (1 + std::exp(-x));
            d = y * (1 - y);
            break;
        case SOFTPLUS:
            y = x > 20 ? x : std::log1p(std::exp(x));
            d = x > 20 ? 1 : 1 / (1 + std::exp(-x));
            break;
        case GELU: {
            const T c = T(0.79788456080286535588);  // sqrt(2 / pi)
            T t = std::tanh(c * (x + T(0.044715) * x * x * x));
            y = T(0.5) * x * (1 + t);
            d = T(0.5) * (1 + t) +
                T(0.5) * x * (1 - t * t) * c * (1 + 3 * T(0.044715) * x * x);
            break;
        }
        default:
            y = x;
            d = 1;
        }
    }
};

// A layer, forward or backward. The library is compiled in parts, side by side: one for each precision
// and kind of activation, which REAL and ACTIVATION name, and one, without them, for everything else.
template <class T, class A, bool FORWARD>
__attribute__((visibility("hidden"))) void all(const Layer<T> &l);

namespace {

// -- tiles ------------------------------------------------------------------------------------------

template <int N> struct Constant {
    static constexpr int value = N;
};

// Not inlined: compilers need far longer for one large function than for many small ones.
template <int R, int V, class F>
__attribute__((noinline)) void tile_at(const F &f, int64_t row, int64_t column) {
    f(Constant<R>{}, Constant<V>{}, row, column);
}

// Call f(R, V, row, column) for tiles of R rows and V vectors that cover (rows, columns).
template <class T, int V, class F>
inline void each_row_tile(int64_t rows, int64_t column, const F &f) {
    int64_t r = 0;
    for (; r + TILE_ROWS <= rows; r += TILE_ROWS) tile_at<TILE_ROWS, V>(f, r, column);
    if (TILE_ROWS > 4 && r + 4 <= rows) {
        tile_at<4, V>(f, r, column);
        r += 4;
    }
    if (r + 2 <= rows) {
        tile_at<2, V>(f, r, column);
        r += 2;
    }
    if (r < rows) tile_at<1, V>(f, r, column);
}

template <class T, class F> inline void each_tile(int64_t rows, int64_t columns, const F &f) {
    constexpr int W = width<T>;
    int64_t c = 0;
    for (; columns - c > (TILE_VECTORS - 1) * W; c += TILE_VECTORS * W)
        each_row_tile<T, TILE_VECTORS>(rows, c, f);
    if (TILE_VECTORS > 2 && columns - c > W) {
        each_row_tile<T, 2>(rows, c, f);
        c += 2 * W;
    }
    for (; c < columns; c += W) each_row_tile<T, 1>(rows, c, f);
}

// How many elements of vector v of a tile at `column` exist.
template <class T> inline int count(int64_t columns, int64_t column, int v) {
    int64_t left = columns - column - v * width<T>;
    return left >= width<T> ? width<T> : left > 0 ? int(left) : 0;
}

template <class T, int R, int V> struct Tile {
    Vec<T> x[R][V];

    void zero() {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) x[r][v] = Vec<T>{};
    }

    // x += rows of `left` (stride) times the columns of a packed matrix (depth, columns) from
    // `column` on.
    void multiply(const T *left, int64_t left_stride, int64_t depth, const T *packed,
                  int64_t columns, int64_t column) {
        const int64_t first = column / PANEL<T> * PANEL<T>;  // of the panel
        const int64_t right_stride = std::min(PANEL<T>, padded(columns) - first);
        const T *right = packed + first * depth + column - first;
        Vec<T> sum[R][V];  // a copy, which stays in registers
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[r][v] = x[r][v];
        for (int64_t d = 0; d < depth; ++d) {
            Vec<T> b[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) b[v] = load(right + d * right_stride + v * width<T>);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                Vec<T> s = splat(left[r * left_stride + d]);
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) sum[r][v] += s * b[v];
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) x[r][v] = sum[r][v];
    }

    // x += the transpose of R columns of `left` (depth rows) times the columns at `right`, of which
    // there may be fewer than the tile has.
    template <bool WHOLE>
    void multiply_transposed(const T *left, int64_t left_stride, int64_t depth, const T *right,
                             int64_t right_stride, int64_t columns) {
        Vec<T> sum[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[r][v] = x[r][v];
        for (int64_t d = 0; d < depth; ++d) {
            Vec<T> b[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                const T *p = right + d * right_stride + v * width<T>;
                b[v] = WHOLE ? load(p) : load(p, count<T>(columns, 0, v));
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                Vec<T> s = splat(left[r + d * left_stride]);
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) sum[r][v] += s * b[v];
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) x[r][v] = sum[r][v];
    }
};

// The first `n` elements of a vector, added to sums in double precision.
template <class T> inline void add_to(double *sums, Vec<T> x, int n) {
    if (n >= width<T>)
        for (int i = 0; i < width<T>; ++i) sums[i] += x[i];
    else
        for (int i = 0; i < n; ++i) sums[i] += x[i];
}

// total (left_columns, right_columns) += left transposed times right, both (rows, columns).
template <class T>
inline void add_outer(int64_t rows, const T *left, int64_t left_stride, int64_t left_columns,
                      const T *right, int64_t right_stride, int64_t right_columns, double *total,
                      int64_t total_stride) {
    each_tile<T>(left_columns, right_columns, [&](auto R_, auto V_, int64_t r, int64_t c) {
        constexpr int R = decltype(R_)::value;
        constexpr int V = decltype(V_)::value;
        Tile<T, R, V> tile;
        tile.zero();
        if (c + V * width<T> <= right_columns)
            tile.template multiply_transposed<true>(left + r, left_stride, rows, right + c,
                                                    right_stride, right_columns - c);
        else
            tile.template multiply_transposed<false>(left + r, left_stride, rows, right + c,
                                                     right_stride, right_columns - c);
        for (int i = 0; i < R; ++i)
            for (int v = 0; v < V; ++v)
                add_to<T>(total + (r + i) * total_stride + c + v * width<T>, tile.x[i][v],
                          count<T>(right_columns, c, v));
    });
}

// Scratch memory of a thread, grown as needed, aligned enough for unaligned vectors.
template <class T> struct Scratch {
    std::vector<T> memory;
    int64_t used = 0;

    void begin(int64_t size) {
        if (int64_t(memory.size()) < size) memory.resize(size);
        used = 0;
    }

    T *take(int64_t rows, int64_t columns) {
        T *p = memory.data() + used;
        used += rows * padded(columns);
        return p;
    }

    T *zeros(int64_t rows, int64_t columns) {
        T *p = take(rows, columns);
        std::memset(p, 0, rows * padded(columns) * sizeof(T));
        return p;
    }
};

// -- one centre -------------------------------------------------------------------------------------

// The tile functions below get sizes at compile time through their first two arguments.
#define TILE_SIZES                              \
    constexpr int R = decltype(R_)::value;      \
    constexpr int V = decltype(V_)::value;      \
    Tile<T, R, V> tile

// Where in the sums the gradient of each weight begins: all are row-major, one after the other.
struct Places {
    int64_t edge_columns, angle_columns;  // of the maps of edges, of angles
    int64_t edge = 0, angle, angle_edge, edge_angle, edge_angle_bias, rho_self, rho_angle,
            rho_update, size;

    template <class T> explicit Places(const Layer<T> &l)
        : edge_columns(l.message + (l.edges ? l.e : 0)),
          angle_columns(l.angles ? l.e + (l.angle_self ? l.a : 0) : 0) {
        const int64_t a = l.angles ? l.a : 0, e = l.angles ? l.e : 0;
        angle = edge + l.e * edge_columns;                         // (e, columns)
        angle_edge = angle + a * angle_columns;                    // (a, columns)
        edge_angle = angle_edge + l.angle_input * 2 * angle_columns;  // other, then receiver
        edge_angle_bias = edge_angle + e * e;
        rho_self = edge_angle_bias + e;
        rho_angle = rho_self + l.e;
        rho_update = rho_angle + l.e;
        size = rho_update + a;
    }
};

template <class T, class A> struct Centre {
    const Layer<T> &l;
    const A act;
    Scratch<T> &scratch;
    int64_t row, k, m;
    const T *edge, *angle;
    const int64_t *neighbour;
    int64_t pe, pa, pi;  // padded widths
    // Projections of the angle-edges, (m, width): of the edge k, and of the edge q with the centre.
    T *other_message = nullptr, *other_update = nullptr;
    T *receiver_message = nullptr, *receiver_update = nullptr;
    // With sums the backward pass differentiates with respect to weights instead of the geometry.
    const Places places;
    double *const sums;

    Centre(const Layer<T> &layer, int64_t row_, Scratch<T> &scratch_, double *sums_ = nullptr)
        : l(layer), act(layer), scratch(scratch_), row(row_), k(layer.k[row_]), m(layer.m[row_]),
          edge(layer.edge + layer.edge_start[row_] * layer.e),
          angle(part(layer.angle, layer.angle_start[row_] * layer.a)),
          neighbour(layer.neighbour + layer.edge_start[row_]), pe(padded(layer.e)),
          pa(padded(layer.a)), pi(padded(layer.angle_input)), places(layer), sums(sums_) {}

    // Nothing, not even an offset, of an array that is not there.
    template <class P> static P *part(P *array, int64_t start) {
        return array ? array + start : nullptr;
    }

    static int64_t scratch_size(const Layer<T> &l, int64_t k, int64_t m) {
        int64_t pe = padded(l.e), pa = padded(l.a), wide = padded(l.message + l.e);
        int64_t dim = padded(l.e + l.n);
        int64_t again = l.sequential ? 2 * k * pe + m * m * pa : 0;
        return again + m * (8 * pe + 6 * pa) + k * (6 * pe + wide + 2 * PAD) + 4 * dim + 8 * (pe + pa) +
               2 * padded(l.message) + 16 * PAD;
    }

    // Pre-activations of an edge map: the centre's, the neighbour's and the edge's own part.
    template <int R, int V>
    void edge_pre(Tile<T, R, V> &tile, int64_t r, int64_t c, int64_t offset, int64_t columns,
                  const Map<T> &map) const {
        const T *own = l.own_edge + row * l.own_stride + offset;
        for (int i = 0; i < R; ++i) {
            const T *theirs = l.projected + neighbour[r + i] * l.projected_stride + offset;
            for (int v = 0; v < V; ++v) {
                int64_t at = c + v * width<T>;
                int n = count<T>(columns, c, v);
                tile.x[i][v] = load(own + at, n) + load(theirs + at, n);
            }
        }
        tile.multiply(edge + r * l.e, l.e, l.e, map.matrix, columns, c);
    }

    // Pre-activations of an angle map for the receiver q and the edges k from r on.
    template <int R, int V>
    void angle_pre(Tile<T, R, V> &tile, int64_t q, int64_t r, int64_t c, int64_t columns,
                   const T *receiver, const T *others, const Map<T> &map) const {
        int64_t p = padded(columns);
        for (int v = 0; v < V; ++v) {
            Vec<T> mine = load(receiver + q * p + c + v * width<T>);
            for (int i = 0; i < R; ++i)
                tile.x[i][v] = mine + load(others + (r + i) * p + c + v * width<T>);
        }
        tile.multiply(angle + (q * m + r) * l.a, l.a, l.a, map.matrix, columns, c);
    }

    // out (rows, packed columns) = edge channels times a map, plus the centre's part if given.
    void project(const Map<T> &map, int64_t columns, const T *own, T *out) const {
        int64_t p = padded(columns);
        each_tile<T>(m, columns, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            for (int v = 0; v < V; ++v) {
                Vec<T> start{};
                if (own) start = load(own + c + v * width<T>, count<T>(columns, c, v));
                for (int i = 0; i < R; ++i) tile.x[i][v] = start;
            }
            tile.multiply(edge + r * l.e, l.e, l.angle_input, map.matrix, columns, c);
            for (int i = 0; i < R; ++i)
                for (int v = 0; v < V; ++v)
                    store(out + (r + i) * p + c + v * width<T>, tile.x[i][v]);
        });
    }

    void project_angle_edges() {
        const T *own = l.own_angle + row * l.own_stride;
        other_message = scratch.take(m, l.e);
        receiver_message = scratch.take(m, l.e);
        project(l.other_message, l.e, nullptr, other_message);
        project(l.receiver_message, l.e, own, receiver_message);
        if (!l.angle_self) return;
        other_update = scratch.take(m, l.a);
        receiver_update = scratch.take(m, l.a);
        project(l.other_update, l.a, nullptr, other_update);
        project(l.receiver_update, l.a, own + l.e, receiver_update);
    }

    // The argument of the edge-angle map, (reach, packed e): R, the edge's own part included.
    T *edge_angle_input(const T *reduced, int64_t reach) const {
        T *input = scratch.take(reach, l.e);
        const T *other = l.other + l.edge_start[row];
        for (int64_t r = 0; r < reach; ++r)
            for (int64_t c = 0; c < l.e; ++c) {
                T x = l.smooth ? T(0) : other[r] * edge[r * l.e + c];
                input[r * pe + c] = r < m ? x + reduced[r * l.e + c] : x;
            }
        return input;
    }

    template <int R, int V>
    void edge_angle_pre(Tile<T, R, V> &tile, const T *input, int64_t r, int64_t c) const {
        for (int v = 0; v < V; ++v) {
            Vec<T> bias = load(l.edge_angle_bias + c + v * width<T>, count<T>(l.e, c, v));
            for (int i = 0; i < R; ++i) tile.x[i][v] = bias;
        }
        tile.multiply(input + r * pe, pe, l.e, l.edge_angle.matrix, l.e, c);
    }

    // ---- forward

    void forward() {
        T *target = part(l.new_edge, l.edge_start[row] * l.e);
        T *reduced = part(l.reduced, l.angle_edge_start[row] * l.e);
        T *new_angle = part(l.new_angle, l.angle_start[row] * l.a);
        if (l.sequential) {
            update_in_sequence(target, reduced, new_angle, false);
            edge = target;
            messages();
            symmetrise();
            return;
        }
        messages();
        symmetrise();
        if (!l.edges) return;
        update_edges(target);
        if (!l.angles) return;
        if (m) project_angle_edges();
        for (int64_t q = 0; q < m; ++q) {
            reduce_angles(q, reduced + q * l.e);
            if (l.angle_self) update_angles(q, new_angle);
        }
        add_edge_angle(reduced, target);
    }

    // The sequential form up to its nodes: each phase reads the newest edges and angles. `edge` are
    // afterwards those that the angles read, and `angle` the new ones.
    void update_in_sequence(T *target, T *reduced, T *new_angle, bool is_reduced) {
        T *between = scratch.take(k, l.e);
        update_edges(between);
        edge = between;
        if (m) project_angle_edges();
        for (int64_t q = 0; q < m; ++q) update_angles(q, new_angle);
        angle = new_angle;
        for (int64_t q = 0; q < m && !is_reduced; ++q) reduce_angles(q, reduced + q * l.e);
        std::memcpy(target, between, k * l.e * sizeof(T));
        add_edge_angle(reduced, target);
    }

    // v3 = sum of weight * act(pre).
    void messages() {
        T *v3 = l.v3 + row * l.message;
        std::memset(v3, 0, l.message * sizeof(T));
        const T *weight = l.message_weight + l.edge_start[row];
        each_tile<T>(k, l.message, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            edge_pre(tile, r, c, 0, l.message, l.edge_message);
            for (int v = 0; v < V; ++v) {
                int n = count<T>(l.message, c, v);
                Vec<T> total = load(v3 + c + v * width<T>, n);
                for (int i = 0; i < R; ++i) {
                    act.value(tile.x[i][v]);
                    total += weight[r + i] * tile.x[i][v];
                }
                store(v3 + c + v * width<T>, total, n);
            }
        });
    }

    // Psi: three weighted sums of the edges and of the neighbours' nodes.
    void symmetrise() const {
        T *psi = l.psi + row * 3 * (l.e + l.n);
        sum_three(psi, l.e, [&](int64_t r) { return edge + r * l.e; });
        sum_three(psi + l.e, l.n, [&](int64_t r) { return l.node + neighbour[r] * l.n; });
        T *out = l.symmetrised + row * l.axis * (l.e + l.n);
        products(psi, l.e, out);
        products(psi + l.e, l.n, out + l.axis * l.e);
    }

    // sym[a, c] = sum over d of x[d, a] x[d, c]
    void products(const T *x, int64_t columns, T *out) const {
        int64_t stride = l.e + l.n;
        for (int64_t a = 0; a < l.axis; ++a)
            for (int64_t c = 0; c < columns; c += width<T>) {
                int n = count<T>(columns, c, 0);
                Vec<T> total{};
                for (int d = 0; d < 3; ++d)
                    total += x[d * stride + a] * load(x + d * stride + c, n);
                store(out + a * columns + c, total, n);
            }
    }

    void products_backward(const T *x, int64_t columns, const T *d_out, T *d_x) const {
        int64_t stride = l.e + l.n;
        for (int d = 0; d < 3; ++d) {
            const T *y = x + d * stride;
            T *d_y = d_x + d * stride;
            for (int64_t c = 0; c < columns; c += width<T>) {
                int n = count<T>(columns, c, 0);
                Vec<T> total{};
                for (int64_t a = 0; a < l.axis; ++a) total += y[a] * load(d_out + a * columns + c, n);
                store(d_y + c, total, n);
            }
            for (int64_t a = 0; a < l.axis; ++a) {
                Vec<T> total{};
                for (int64_t c = 0; c < columns; c += width<T>) {
                    int n = count<T>(columns, c, 0);
                    total += load(y + c, n) * load(d_out + a * columns + c, n);
                }
                d_y[a] += sum<T>(total);
            }
        }
    }

    template <class F> void sum_three(T *out, int64_t columns, F &&x) const {
        const T *h = l.symmetrise + 3 * l.edge_start[row];
        int64_t stride = l.e + l.n;
        constexpr int W = width<T>;
        for (int64_t c = 0; c < columns; c += 2 * W) {
            int n0 = count<T>(columns, c, 0), n1 = count<T>(columns, c, 1);
            Vec<T> s[3][2] = {};
            for (int64_t r = 0; r < k; ++r) {
                Vec<T> x0 = load(x(r) + c, n0), x1{};
                if (n1) x1 = load(x(r) + c + W, n1);
                for (int d = 0; d < 3; ++d) {
                    s[d][0] += h[3 * r + d] * x0;
                    s[d][1] += h[3 * r + d] * x1;
                }
            }
            for (int d = 0; d < 3; ++d) {
                store(out + d * stride + c, s[d][0], n0);
                if (n1) store(out + d * stride + c + W, s[d][1], n1);
            }
        }
    }

    // keep e + rho u1
    void update_edges(T *target) const {
        const T keep = T(l.edge_keep);
        each_tile<T>(k, l.e, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            edge_pre(tile, r, c, l.message, l.e, l.edge_self);
            for (int v = 0; v < V; ++v) {
                int n = count<T>(l.e, c, v);
                int64_t at = c + v * width<T>;
                Vec<T> rho = load(l.rho_self + at, n);
                for (int i = 0; i < R; ++i) {
                    act.value(tile.x[i][v]);
                    Vec<T> old = load(edge + (r + i) * l.e + at, n);
                    store(target + (r + i) * l.e + at, keep * old + rho * tile.x[i][v], n);
                }
            }
        });
    }

    // R of the receiver q.
    void reduce_angles(int64_t q, T *reduced) const {
        std::memset(reduced, 0, l.e * sizeof(T));
        const T *weight = l.angle_weight + l.angle_start[row] + q * m;
        each_tile<T>(m, l.e, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            angle_pre(tile, q, r, c, l.e, receiver_message, other_message, l.angle_message);
            for (int v = 0; v < V; ++v) {
                int n = count<T>(l.e, c, v);
                Vec<T> total = load(reduced + c + v * width<T>, n);
                for (int i = 0; i < R; ++i) {
                    act.value(tile.x[i][v]);
                    total += weight[r + i] * tile.x[i][v];
                }
                store(reduced + c + v * width<T>, total, n);
            }
        });
    }

    // The angles of the receiver q: keep a + rho t.
    void update_angles(int64_t q, T *new_angle) const {
        const T keep = T(l.angle_keep);
        const T *from = angle + q * m * l.a;
        T *to = new_angle + q * m * l.a;
        each_tile<T>(m, l.a, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            angle_pre(tile, q, r, c, l.a, receiver_update, other_update, l.angle_update);
            for (int v = 0; v < V; ++v) {
                int n = count<T>(l.a, c, v);
                int64_t at = c + v * width<T>;
                Vec<T> rho = load(l.rho_update + at, n);
                for (int i = 0; i < R; ++i) {
                    act.value(tile.x[i][v]);
                    Vec<T> old = load(from + (r + i) * l.a + at, n);
                    store(to + (r + i) * l.a + at, keep * old + rho * tile.x[i][v], n);
                }
            }
        });
    }

    // Add rho u2. In smooth models edges without angles all have the same.
    void add_edge_angle(const T *reduced, T *target) const {
        int64_t reach = l.smooth ? m : k;
        const T *input = edge_angle_input(reduced, reach);
        each_tile<T>(reach, l.e, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            edge_angle_pre(tile, input, r, c);
            for (int v = 0; v < V; ++v) {
                int n = count<T>(l.e, c, v);
                int64_t at = c + v * width<T>;
                Vec<T> rho = load(l.rho_angle + at, n);
                for (int i = 0; i < R; ++i) {
                    act.value(tile.x[i][v]);
                    T *p = target + (r + i) * l.e + at;
                    store(p, load(p, n) + rho * tile.x[i][v], n);
                }
            }
        });
        for (int64_t c = 0; c < l.e && reach < k; c += width<T>) {
            int n = count<T>(l.e, c, 0);
            Vec<T> u2 = load(l.edge_angle_bias + c, n);
            act.value(u2);
            u2 *= load(l.rho_angle + c, n);
            for (int64_t r = reach; r < k; ++r) {
                T *p = target + r * l.e + c;
                store(p, load(p, n) + u2, n);
            }
        }
    }

    // ---- backward

    void backward() {
        T *d_target = l.d_edge + l.edge_start[row] * l.e;
        T *reduced = part(l.reduced, l.angle_edge_start[row] * l.e);
        int64_t both = l.message + (l.edges ? l.e : 0);
        // Gradients of the pre-activations of edge maps, (k, both).
        T *d_pre;
        int64_t d_stride = both;
        if (l.incoming_projection) {
            d_pre = l.incoming_projection + l.edge_start[row] * both;
        } else {
            d_stride = padded(both);
            d_pre = scratch.take(k, both);
        }
        // Gradients with respect to the edges of the layer's start, (k, packed e).
        T *d_edge = scratch.take(k, l.e);
        if (l.sequential) {
            backward_in_sequence(reduced, d_target, d_pre, d_stride, d_edge);
            return;
        }
        messages_backward(d_pre, d_stride);
        if (l.edges) update_edges_backward(d_target, d_pre, d_stride);
        add_edge_maps(d_pre, d_stride, 0, places.edge_columns);
        edge_inputs_backward(d_target, d_pre, d_stride, true, l.edges, d_edge);
        symmetrise_backward(d_edge);
        if (l.angles) {
            angles_backward(reduced, d_target, d_edge, [&](int64_t q, auto &d) {
                angle_messages_backward(q, d);
                if (l.angle_self) angle_updates_backward(q, d);
                angle_inputs_backward(q, true, l.angle_self, d);
            });
        }
        unpack(d_edge, d_target);
    }

    // Back through update_in_sequence, which is done once more.
    void backward_in_sequence(T *reduced, T *d_target, T *d_pre, int64_t d_stride, T *d_edge) {
        const T *old_edge = edge, *old_angle = angle;
        T *target = scratch.take(k, l.e), *new_angle = scratch.take(m * m, l.a);
        update_in_sequence(target, reduced, new_angle, true);
        const T *between = edge;
        edge = target;
        messages_backward(d_pre, d_stride);
        add_edge_maps(d_pre, d_stride, 0, l.message);
        edge_inputs_backward(d_target, d_pre, d_stride, true, false, d_edge);
        symmetrise_backward(d_edge);
        unpack(d_edge, d_target);
        edge = between;
        angles_backward(reduced, d_target, d_edge, [&](int64_t q, auto &d) {
            angle = new_angle;
            angle_messages_backward(q, d);
            angle_inputs_backward(q, true, false, d);
            angle = old_angle;
            angle_updates_backward(q, d);
            angle_inputs_backward(q, false, true, d);
        });
        unpack(d_edge, d_target);
        edge = old_edge;
        update_edges_backward(d_target, d_pre, d_stride);
        add_edge_maps(d_pre, d_stride, l.message, l.e);
        edge_inputs_backward(d_target, d_pre, d_stride, false, true, d_edge);
        unpack(d_edge, d_target);
    }

    // The weights of edge maps, of their columns from `start` on, by the edges that they read now.
    void add_edge_maps(const T *d_pre, int64_t d_stride, int64_t start, int64_t columns) const {
        if (sums)
            add_outer<T>(k, edge, l.e, l.e, d_pre + start, d_stride, columns,
                         sums + places.edge + start, places.edge_columns);
    }

    void unpack(const T *d_edge, T *d_target) const {
        for (int64_t r = 0; r < k; ++r)
            std::memcpy(d_target + r * l.e, d_edge + r * pe, l.e * sizeof(T));
    }

    // From the gradients of the new edges and of the maps' pre-activations, `message` and `self` as
    // far as they count, to those of the edges that they were made of.
    void edge_inputs_backward(const T *d_target, const T *d_pre, int64_t d_stride, bool message,
                              bool self, T *d_edge) const {
        const T keep = T(self ? l.edge_keep : 1.0);
        each_tile<T>(k, l.e, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            for (int i = 0; i < R; ++i)
                for (int v = 0; v < V; ++v) {
                    int n = count<T>(l.e, c, v);
                    tile.x[i][v] = keep * load(d_target + (r + i) * l.e + c + v * width<T>, n);
                }
            const T *left = d_pre + r * d_stride;
            if (message)
                tile.multiply(left, d_stride, l.message, l.edge_message.transposed, l.e, c);
            if (self)
                tile.multiply(left + l.message, d_stride, l.e, l.edge_self.transposed, l.e, c);
            for (int i = 0; i < R; ++i)
                for (int v = 0; v < V; ++v)
                    store(d_edge + (r + i) * pe + c + v * width<T>, tile.x[i][v]);
        });
    }

    // Add the rows of a tile, masked to `n` columns, to a sum over rows.
    template <int R, int V> static void add_rows(const Tile<T, R, V> &tile, T *sum, int64_t columns,
                                                 int64_t c) {
        for (int v = 0; v < V; ++v) {
            int n = count<T>(columns, c, v);
            Vec<T> total = load(sum + c + v * width<T>, n);
            for (int i = 0; i < R; ++i) total += tile.x[i][v];
            store(sum + c + v * width<T>, total, n);
        }
    }

    void messages_backward(T *d_pre, int64_t d_stride) {
        const T *d_v3 = l.d_v3 + row * l.message;
        const T *weight = l.message_weight + l.edge_start[row];
        T *d_own = l.d_own_edge + row * l.d_own_stride;
        std::memset(d_own, 0, (l.message + (l.edges ? l.e : 0)) * sizeof(T));
        T *d_weight = sums ? nullptr : scratch.zeros(k, PAD);  // a vector for each edge
        each_tile<T>(k, l.message, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            edge_pre(tile, r, c, 0, l.message, l.edge_message);
            for (int v = 0; v < V; ++v) {
                int n = count<T>(l.message, c, v);
                int64_t at = c + v * width<T>;
                Vec<T> d_out = load(d_v3 + at, n);
                for (int i = 0; i < R; ++i) {
                    Vec<T> slope;
                    act.value_and_slope(tile.x[i][v], slope);
                    if (!sums) {
                        T *d = d_weight + (r + i) * PAD;
                        store(d, load(d) + tile.x[i][v] * d_out);
                    }
                    tile.x[i][v] = weight[r + i] * d_out * slope;
                    store(d_pre + (r + i) * d_stride + at, tile.x[i][v], n);
                }
            }
            add_rows(tile, d_own, l.message, c);
        });
        if (sums) return;
        T *out = l.d_message_weight + l.edge_start[row];
        for (int64_t r = 0; r < k; ++r) out[r] += sum<T>(load(d_weight + r * PAD));
    }

    void update_edges_backward(const T *d_target, T *d_pre, int64_t d_stride) const {
        T *d_own = l.d_own_edge + row * l.d_own_stride + l.message;
        each_tile<T>(k, l.e, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            edge_pre(tile, r, c, l.message, l.e, l.edge_self);
            for (int v = 0; v < V; ++v) {
                int n = count<T>(l.e, c, v);
                int64_t at = c + v * width<T>;
                Vec<T> rho = load(l.rho_self + at, n), d_rho{};
                for (int i = 0; i < R; ++i) {
                    Vec<T> slope, d_out = load(d_target + (r + i) * l.e + at, n);
                    act.value_and_slope(tile.x[i][v], slope);
                    if (sums) d_rho += tile.x[i][v] * d_out;
                    tile.x[i][v] = rho * d_out * slope;
                    store(d_pre + (r + i) * d_stride + l.message + at, tile.x[i][v], n);
                }
                if (sums) add_to<T>(sums + places.rho_self + at, d_rho, n);
            }
            add_rows(tile, d_own, l.e, c);
        });
    }

    void symmetrise_backward(T *d_edge) const {
        const T *h = l.symmetrise + 3 * l.edge_start[row];
        T *d_h = sums ? nullptr : l.d_symmetrise + 3 * l.edge_start[row];
        const int64_t stride = l.e + l.n;
        const T *psi = l.psi + row * 3 * stride;
        const T *d_sym = l.d_symmetrised + row * l.axis * stride;
        T *d_psi = scratch.take(3, stride);
        products_backward(psi, l.e, d_sym, d_psi);
        products_backward(psi + l.e, l.n, d_sym + l.axis * l.e, d_psi + l.e);
        T *out = l.incoming_node ? l.incoming_node + l.edge_start[row] * l.n : nullptr;
        for (int64_t r = 0; r < k; ++r) {
            Vec<T> s[3] = {};
            const T *x = edge + r * l.e;
            for (int64_t c = 0; c < l.e; c += width<T>) {
                int n = count<T>(l.e, c, 0);
                Vec<T> own = load(x + c, n), d = load(d_edge + r * pe + c);
                for (int j = 0; j < 3; ++j) {
                    Vec<T> p = load(d_psi + j * stride + c, n);
                    if (!sums) s[j] += own * p;
                    d += h[3 * r + j] * p;
                }
                store(d_edge + r * pe + c, d);
            }
            x = l.node + neighbour[r] * l.n;
            for (int64_t c = 0; c < l.n; c += width<T>) {
                int n = count<T>(l.n, c, 0);
                Vec<T> theirs = load(x + c, n), d{};
                for (int j = 0; j < 3; ++j) {
                    Vec<T> p = load(d_psi + j * stride + l.e + c, n);
                    if (!sums) s[j] += theirs * p;
                    d += h[3 * r + j] * p;
                }
                if (out) store(out + r * l.n + c, d, n);
            }
            for (int j = 0; j < 3 && !sums; ++j) d_h[3 * r + j] += sum<T>(s[j]);
        }
    }

    // Gradients at the angles of a receiver q: of R, of the projections, (m, packed e or a), and of
    // the pre-activations of q.
    struct AngleGradients {
        const T *input;
        T *other_m, *receiver_m, *pre_m, *weight;
        T *other_u = nullptr, *receiver_u = nullptr, *pre_u = nullptr;
    };

    // From the new edges through u2, R and the angle maps, whose part for a receiver `receive` does.
    template <class F>
    void angles_backward(const T *reduced, const T *d_target, T *d_edge, F &&receive) {
        int64_t reach = l.smooth ? m : k;
        AngleGradients d;
        d.input = edge_angle_backward(reduced, reach, d_target);
        if (!l.smooth) {
            const T *other = l.other + l.edge_start[row];
            for (int64_t r = 0; r < k; ++r)
                for (int64_t c = 0; c < l.e; ++c) d_edge[r * pe + c] += other[r] * d.input[r * pe + c];
            if (!sums && l.d_other) other_backward(d.input);
        }
        T *d_own = l.d_own_angle + row * l.d_own_stride;
        std::memset(d_own, 0, (l.e + (l.angle_self ? l.a : 0)) * sizeof(T));
        if (!m) return;
        if (!other_message) project_angle_edges();
        d.other_m = scratch.zeros(m, l.e);
        d.receiver_m = scratch.zeros(m, l.e);
        d.pre_m = scratch.take(m, l.e);
        d.weight = scratch.take(m, PAD);
        if (l.angle_self) {
            d.other_u = scratch.zeros(m, l.a);
            d.receiver_u = scratch.zeros(m, l.a);
            d.pre_u = scratch.take(m, l.a);
        }
        for (int64_t q = 0; q < m; ++q) receive(q, d);
        if (sums) {
            double *out = sums + places.angle_edge;
            const int64_t columns = places.angle_columns;
            add_angle_edges(d.other_m, pe, l.e, out);
            add_angle_edges(d.receiver_m, pe, l.e, out + columns);
            if (l.angle_self) {
                add_angle_edges(d.other_u, pa, l.a, out + l.e);
                add_angle_edges(d.receiver_u, pa, l.a, out + columns + l.e);
            }
        }
        for (int64_t q = 0; q < m; ++q) {
            for (int64_t c = 0; c < l.e; ++c) d_own[c] += d.receiver_m[q * pe + c];
            if (l.angle_self)
                for (int64_t c = 0; c < l.a; ++c) d_own[l.e + c] += d.receiver_u[q * pa + c];
        }
        each_tile<T>(m, l.angle_input, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            tile.zero();
            tile.multiply(d.other_m + r * pe, pe, l.e, l.other_message.transposed, l.angle_input, c);
            tile.multiply(d.receiver_m + r * pe, pe, l.e, l.receiver_message.transposed, l.angle_input, c);
            if (l.angle_self) {
                tile.multiply(d.other_u + r * pa, pa, l.a, l.other_update.transposed, l.angle_input, c);
                tile.multiply(d.receiver_u + r * pa, pa, l.a, l.receiver_update.transposed, l.angle_input, c);
            }
            for (int i = 0; i < R; ++i)
                for (int v = 0; v < V; ++v) {
                    int n = count<T>(l.angle_input, c, v);
                    T *p = d_edge + (r + i) * pe + c + v * width<T>;
                    store(p, load(p, n) + tile.x[i][v], n);
                }
        });
    }

    // The weights of a map of angle-edges, from the gradients of the projections (m, columns).
    void add_angle_edges(const T *d, int64_t d_stride, int64_t columns, double *out) const {
        add_outer<T>(m, edge, l.e, l.angle_input, d, d_stride, columns, out,
                     2 * places.angle_columns);
    }

    // The factor of the edge itself in R.
    void other_backward(const T *d_input) const {
        T *d_other = l.d_other + l.edge_start[row];
        for (int64_t r = 0; r < m; ++r) {
            Vec<T> total{};
            for (int64_t c = 0; c < l.e; c += width<T>) {
                int n = count<T>(l.e, c, 0);
                total += load(edge + r * l.e + c, n) * load(d_input + r * pe + c, n);
            }
            d_other[r] += sum<T>(total);
        }
    }

    // From the new edges through u2 to its argument, (reach, packed e).
    T *edge_angle_backward(const T *reduced, int64_t reach, const T *d_target) const {
        const T *input = edge_angle_input(reduced, reach);
        T *d_u2 = scratch.take(reach, l.e), *d_input = scratch.take(reach, l.e);
        each_tile<T>(reach, l.e, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            edge_angle_pre(tile, input, r, c);
            for (int v = 0; v < V; ++v) {
                int n = count<T>(l.e, c, v);
                int64_t at = c + v * width<T>;
                Vec<T> rho = load(l.rho_angle + at, n), d_rho{}, d_bias{};
                for (int i = 0; i < R; ++i) {
                    Vec<T> slope, d_out = load(d_target + (r + i) * l.e + at, n);
                    act.value_and_slope(tile.x[i][v], slope);
                    Vec<T> d_x = rho * d_out * slope;
                    store(d_u2 + (r + i) * pe + at, d_x);
                    if (sums) {
                        d_rho += tile.x[i][v] * d_out;
                        d_bias += d_x;
                    }
                }
                if (sums) {
                    add_to<T>(sums + places.rho_angle + at, d_rho, n);
                    add_to<T>(sums + places.edge_angle_bias + at, d_bias, n);
                }
            }
        });
        if (sums) {
            add_outer<T>(reach, input, pe, l.e, d_u2, pe, l.e, sums + places.edge_angle, l.e);
            add_constant_edges(reach, d_target);
        }
        each_tile<T>(reach, l.e, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            tile.zero();
            tile.multiply(d_u2 + r * pe, pe, l.e, l.edge_angle.transposed, l.e, c);
            for (int i = 0; i < R; ++i)
                for (int v = 0; v < V; ++v)
                    store(d_input + (r + i) * pe + c + v * width<T>, tile.x[i][v]);
        });
        return d_input;
    }

    // The edges from `reach` on, which all have the same u2, made of the bias alone.
    void add_constant_edges(int64_t reach, const T *d_target) const {
        for (int64_t c = 0; c < l.e && reach < k; c += width<T>) {
            int n = count<T>(l.e, c, 0);
            Vec<T> total{}, slope, u2 = load(l.edge_angle_bias + c, n);
            for (int64_t r = reach; r < k; ++r) total += load(d_target + r * l.e + c, n);
            act.value_and_slope(u2, slope);
            add_to<T>(sums + places.rho_angle + c, u2 * total, n);
            add_to<T>(sums + places.edge_angle_bias + c,
                      load(l.rho_angle + c, n) * total * slope, n);
        }
    }

    void angle_messages_backward(int64_t q, const AngleGradients &gradients) const {
        const T *d_reduced = gradients.input + q * pe;
        T *d_pre = gradients.pre_m, *d_other = gradients.other_m, *d_weight = gradients.weight;
        T *d_receiver = gradients.receiver_m + q * pe;
        const T *weight = l.angle_weight + l.angle_start[row] + q * m;
        if (!sums) std::memset(d_weight, 0, m * PAD * sizeof(T));
        each_tile<T>(m, l.e, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            angle_pre(tile, q, r, c, l.e, receiver_message, other_message, l.angle_message);
            for (int v = 0; v < V; ++v) {
                int64_t at = c + v * width<T>;
                // Zero beyond the last column, so that nothing there reaches a sum.
                Vec<T> d_out = load(d_reduced + at, count<T>(l.e, c, v));
                Vec<T> total = load(d_receiver + at);
                for (int i = 0; i < R; ++i) {
                    Vec<T> slope;
                    act.value_and_slope(tile.x[i][v], slope);
                    if (!sums) {
                        T *d = d_weight + (r + i) * PAD;
                        store(d, load(d) + tile.x[i][v] * d_out);
                    }
                    Vec<T> d_x = weight[r + i] * d_out * slope;
                    T *p = d_other + (r + i) * pe + at;
                    store(p, load(p) + d_x);
                    store(d_pre + (r + i) * pe + at, d_x);
                    total += d_x;
                }
                store(d_receiver + at, total);
            }
        });
        if (sums) {
            add_angles(q, d_pre, pe, l.e, 0);
            return;
        }
        T *out = l.d_angle_weight + l.angle_start[row] + q * m;
        for (int64_t r = 0; r < m; ++r) out[r] += sum<T>(load(d_weight + r * PAD));
    }

    // The weights of an angle map, of its columns from `start` on, by the angles of q.
    void add_angles(int64_t q, const T *d_pre, int64_t d_stride, int64_t columns,
                    int64_t start) const {
        add_outer<T>(m, angle + q * m * l.a, l.a, l.a, d_pre, d_stride, columns,
                     sums + places.angle + start, places.angle_columns);
    }

    void angle_updates_backward(int64_t q, const AngleGradients &gradients) const {
        T *d_pre = gradients.pre_u, *d_other = gradients.other_u;
        T *d_receiver = gradients.receiver_u + q * pa;
        const T *d_target = l.d_angle + (l.angle_start[row] + q * m) * l.a;
        each_tile<T>(m, l.a, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            angle_pre(tile, q, r, c, l.a, receiver_update, other_update, l.angle_update);
            for (int v = 0; v < V; ++v) {
                int n = count<T>(l.a, c, v);
                int64_t at = c + v * width<T>;
                Vec<T> rho = load(l.rho_update + at, n), d_rho{};
                Vec<T> total = load(d_receiver + at);
                for (int i = 0; i < R; ++i) {
                    Vec<T> slope, d_out = load(d_target + (r + i) * l.a + at, n);
                    act.value_and_slope(tile.x[i][v], slope);
                    if (sums) d_rho += tile.x[i][v] * d_out;
                    Vec<T> d_x = rho * d_out * slope;
                    T *p = d_other + (r + i) * pa + at;
                    store(p, load(p) + d_x);
                    store(d_pre + (r + i) * pa + at, d_x);
                    total += d_x;
                }
                store(d_receiver + at, total);
                if (sums) add_to<T>(sums + places.rho_update + at, d_rho, n);
            }
        });
        if (sums) add_angles(q, d_pre, pa, l.a, l.e);
    }

    // The angles of the receiver q: what came through the maps that count, and the residual.
    void angle_inputs_backward(int64_t q, bool message, bool self, const AngleGradients &d) const {
        T *d_target = l.d_angle + (l.angle_start[row] + q * m) * l.a;
        const T keep = T(self ? l.angle_keep : 1.0);
        each_tile<T>(m, l.a, [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            for (int i = 0; i < R; ++i)
                for (int v = 0; v < V; ++v) {
                    int n = count<T>(l.a, c, v);
                    tile.x[i][v] = keep * load(d_target + (r + i) * l.a + c + v * width<T>, n);
                }
            if (message)
                tile.multiply(d.pre_m + r * pe, pe, l.e, l.angle_message.transposed, l.a, c);
            if (self) tile.multiply(d.pre_u + r * pa, pa, l.a, l.angle_update.transposed, l.a, c);
            for (int i = 0; i < R; ++i)
                for (int v = 0; v < V; ++v)
                    store(d_target + (r + i) * l.a + c + v * width<T>, tile.x[i][v],
                          count<T>(l.a, c, v));
        });
    }
};

template <class T, class A, bool FORWARD> void all_centres(const Layer<T> &l) {
#pragma omp parallel
    {
        static thread_local Scratch<T> scratch;
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < l.n_rows; ++row) {
            scratch.begin(Centre<T, A>::scratch_size(l, l.k[row], l.m[row]));
            Centre<T, A> centre(l, row, scratch);
            if (FORWARD)
                centre.forward();
            else
                centre.backward();
        }
    }
}

// All centres of the backward pass that sums gradients with respect to weights, part by part.
template <class T, class A> void all_parts(const Layer<T> &l) {
    const Places places(l);
    // Parts of equal work: an edge counts as six angles.
    std::vector<int64_t> ends(l.n_parts + 1, 0);
    double work = 0, done = 0;
    auto of = [&](int64_t row) { return double(l.m[row] * l.m[row] + 6 * l.k[row] + 1); };
    for (int64_t row = 0; row < l.n_rows; ++row) work += of(row);
    for (int64_t row = 0, part = 0; row < l.n_rows; ++row) {
        done += of(row);
        while (part < l.n_parts && done >= work * (part + 1) / l.n_parts) ends[++part] = row + 1;
    }
    ends[l.n_parts] = l.n_rows;
#pragma omp parallel
    {
        static thread_local Scratch<T> scratch;
#pragma omp for schedule(dynamic, 1)
        for (int64_t part = 0; part < l.n_parts; ++part) {
            double *sums = l.part_sums + part * places.size;
            std::memset(sums, 0, places.size * sizeof(double));
            for (int64_t row = ends[part]; row < ends[part + 1]; ++row) {
                scratch.begin(Centre<T, A>::scratch_size(l, l.k[row], l.m[row]));
                Centre<T, A>(l, row, scratch, sums).backward();
            }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < places.size; ++i) {
            double total = 0;
            for (int64_t part = 0; part < l.n_parts; ++part)
                total += l.part_sums[part * places.size + i];
            l.weight_sums[i] += total;
        }
    }
}

}  // namespace

#ifdef REAL
template <class T, class A, bool FORWARD> void all(const Layer<T> &l) {
    if (FORWARD || !l.weight_sums)
        all_centres<T, A, FORWARD>(l);
    else
        all_parts<T, A>(l);
}

template void all<REAL, ACTIVATION<REAL>, true>(const Layer<REAL> &);
template void all<REAL, ACTIVATION<REAL>, false>(const Layer<REAL> &);
#else

namespace {

template <class T, bool FORWARD> void run(const Layer<T> *l) {
    if (l->activation == SILUT)
        all<T, Silut<T>, FORWARD>(*l);
    else
        all<T, General<T>, FORWARD>(*l);
}

// -- nodes ------------------------------------------------------------------------------------------

template <class T> void product(const Product<T> &l) {
    // A part is as wide as a tile, and as high as lets others have some.
    constexpr int64_t WIDE = PANEL<T>, HIGH = 4 * TILE_ROWS;
    const int64_t across = (l.columns + WIDE - 1) / WIDE, down = (l.rows + HIGH - 1) / HIGH;
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < across * down; ++part) {
        const int64_t column = part / down * WIDE, row = part % down * HIGH;
        const int64_t columns = std::min(WIDE, l.columns - column);
        each_tile<T>(std::min(HIGH, l.rows - row), columns,
                     [&](auto R_, auto V_, int64_t r, int64_t c) {
            TILE_SIZES;
            r += row;
            tile.zero();
            for (int v = 0; v < V && l.start; ++v) {
                const T *start = l.start + r * l.start_stride + column + c + v * width<T>;
                int n = count<T>(columns, c, v);
                for (int i = 0; i < R; ++i) tile.x[i][v] = load(start + i * l.start_stride, n);
            }
            tile.multiply(l.left + r * l.left_stride, l.left_stride, l.depth, l.right, l.columns,
                          column + c);
            for (int v = 0; v < V; ++v) {
                T *out = l.out + r * l.out_stride + column + c + v * width<T>;
                int n = count<T>(columns, c, v);
                for (int i = 0; i < R; ++i) store(out + i * l.out_stride, tile.x[i][v], n);
            }
        });
    }
}

#undef TILE_SIZES

template <class T> void outer(const Outer<T> &l) {
    // Parts are tiles of the result; each adds up all rows, some at a time lest float32 rounds.
    constexpr int64_t WIDE = TILE_VECTORS * width<T>, HIGH = 2 * TILE_ROWS, ROWS = 64;
    const int64_t across = (l.right_columns + WIDE - 1) / WIDE;
    const int64_t down = (l.left_columns + HIGH - 1) / HIGH;
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < across * down; ++part) {
        const int64_t column = part / down * WIDE, first = part % down * HIGH;
        for (int64_t row = 0; row < l.rows; row += ROWS)
            add_outer<T>(std::min(ROWS, l.rows - row), l.left + row * l.left_stride + first,
                         l.left_stride, std::min(HIGH, l.left_columns - first),
                         l.right + row * l.right_stride + column, l.right_stride,
                         std::min(WIDE, l.right_columns - column),
                         l.total + first * l.total_stride + column, l.total_stride);
    }
}

template <class T, class A> void update_nodes(const Nodes<T> &l) {
    const A act(l);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < l.n_rows; ++row)
        for (int64_t c = 0; c < l.n; c += width<T>) {
            int n = count<T>(l.n, c, 0);
            int64_t at = row * l.n + c;
            Vec<T> v1 = load(l.self_pre + row * l.self_stride + c, n);
            Vec<T> v2 = load(l.sym_pre + at, n);
            act.value(v1);
            act.value(v2);
            Vec<T> x = T(l.keep) * load(l.node + at, n) + load(l.rho + c, n) * v1 +
                       load(l.rho + l.n + c, n) * v2;
            for (int64_t h = 0; h < l.chunks; ++h)
                x += load(l.rho + (2 + h) * l.n + c, n) *
                     load(l.v3 + (row * l.chunks + h) * l.n + c, n);
            store(l.new_node + at, x, n);
        }
}

template <class T, class A> void update_nodes_backward(const Nodes<T> &l) {
    const A act(l);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < l.n_rows; ++row)
        for (int64_t c = 0; c < l.n; c += width<T>) {
            int n = count<T>(l.n, c, 0);
            int64_t at = row * l.n + c;
            Vec<T> d = load(l.d_node + at, n), slope;
            Vec<T> v = load(l.self_pre + row * l.self_stride + c, n);
            act.value_and_slope(v, slope);
            store(l.d_self + row * l.d_self_stride + c, load(l.rho + c, n) * d * slope, n);
            v = load(l.sym_pre + at, n);
            act.value_and_slope(v, slope);
            store(l.d_sym + at, load(l.rho + l.n + c, n) * d * slope, n);
            for (int64_t h = 0; h < l.chunks; ++h)
                store(l.d_v3 + (row * l.chunks + h) * l.n + c,
                      load(l.rho + (2 + h) * l.n + c, n) * d, n);
        }
}

template <class T>
void sum_rows(const int64_t *edges, int64_t n_edges, const T *x, int64_t columns, T *out,
              bool add) {
    for (int64_t c = 0; c < columns; c += width<T>) {
        int n = count<T>(columns, c, 0);
        Vec<T> total{};
        if (add) total = load(out + c, n);
        for (int64_t i = 0; i < n_edges; ++i) total += load(x + edges[i] * columns + c, n);
        store(out + c, total, n);
    }
}

template <class T> void incoming(const Incoming<T> &l) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t row = 0; row < l.n_rows; ++row) {
        const int64_t *edges = l.edges + l.start[row];
        int64_t end = row + 1 < l.n_rows ? l.start[row + 1] : l.n_edges;
        int64_t n = end - l.start[row];
        sum_rows(edges, n, l.projection, l.projection_width,
                 l.projection_sum + row * l.projection_width, false);
        sum_rows(edges, n, l.node, l.node_width, l.d_node + row * l.node_width, true);
    }
}

template <class T> void nodes(const Nodes<T> *l, bool forward) {
    if (l->activation == SILUT)
        forward ? update_nodes<T, Silut<T>>(*l) : update_nodes_backward<T, Silut<T>>(*l);
    else
        forward ? update_nodes<T, General<T>>(*l) : update_nodes_backward<T, General<T>>(*l);
}

}  // namespace

extern "C" {
int64_t dpa3_abi() { return 6; }
// Columns of the panels of packed matrices.
int64_t dpa3_panel_f32() { return PANEL<float>; }
int64_t dpa3_panel_f64() { return PANEL<double>; }
// The caller compares these with its own layout of the arguments.
int64_t dpa3_size(int64_t which) {
    const int64_t sizes[] = {sizeof(Layer<double>), sizeof(Product<double>), sizeof(Nodes<double>),
                             sizeof(Incoming<double>), sizeof(Outer<double>)};
    return which < 5 ? sizes[which] : 0;
}

void dpa3_forward_f32(const Layer<float> *layer) { run<float, true>(layer); }
void dpa3_forward_f64(const Layer<double> *layer) { run<double, true>(layer); }
void dpa3_backward_f32(const Layer<float> *layer) { run<float, false>(layer); }
void dpa3_backward_f64(const Layer<double> *layer) { run<double, false>(layer); }
void dpa3_product_f32(const Product<float> *l) { product(*l); }
void dpa3_product_f64(const Product<double> *l) { product(*l); }
void dpa3_nodes_f32(const Nodes<float> *l) { nodes(l, true); }
void dpa3_nodes_f64(const Nodes<double> *l) { nodes(l, true); }
void dpa3_nodes_backward_f32(const Nodes<float> *l) { nodes(l, false); }
void dpa3_nodes_backward_f64(const Nodes<double> *l) { nodes(l, false); }
void dpa3_incoming_f32(const Incoming<float> *l) { incoming(*l); }
void dpa3_incoming_f64(const Incoming<double> *l) { incoming(*l); }
void dpa3_outer_f32(const Outer<float> *l) { outer(*l); }
void dpa3_outer_f64(const Outer<double> *l) { outer(*l); }
}
#endif  // REAL
