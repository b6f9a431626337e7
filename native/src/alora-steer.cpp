#include "alora-steer.h"

#include "alora-host.h"

#include <cfloat>
#include <cmath>
#include <cstring>

void alora_steered::fill(const alora_vectors & vectors, const std::vector<alora_choice> & choices) {
    rows.clear();
    uses.clear();
    for (const alora_choice & choice : choices) {
        const auto first = (int32_t) uses.size();
        vectors.append_uses(choice, uses);
        rows.push_back({ first, (int32_t) uses.size() - first });
    }
}

//
// one row
//

// The sum does not depend on the instruction set or on who computes it, and is exact enough that nothing
// further is left of what is projected out.
static double dot(const float * a, const float * b, int64_t n) {
    static constexpr int LANES        = 16;
    double               lanes[LANES] = {};
    int64_t              i            = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; ++j) {
            lanes[j] += (double) a[i + j] * b[i + j];
        }
    }
    double sum = 0.0;
    for (; i < n; ++i) {
        sum += (double) a[i] * b[i];
    }
    for (const double lane : lanes) {
        sum += lane;
    }
    return sum;
}

static void add_times(float * out, const float * v, float factor, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        out[i] += factor * v[i];
    }
}

// What each direction of an edit is multiplied with before it is added.
static double factor_of(
        const alora_edit_at & edit, double scale, const float * h, const float * v, int64_t n) {
    switch (edit.kind) {
        case ALORA_EDIT_PROJECT:
            return -scale * dot(v, h, n);
        case ALORA_EDIT_PROJECT_POSITIVE:
            return -scale * std::fmax(0.0, dot(v, h, n));
        default:
            return scale;
    }
}

// Every edit reads the same `h`, so their order means nothing but for rounding.
static void steer_row(
        const alora_steer::node & node, const alora_steered::row & row, const float * h,
        float * out, int64_t n) {
    bool keep_norm = false;
    for (int32_t u = row.first; u < row.first + row.n; ++u) {
        const auto & [vector, use_scale] = node.steered.uses[u];
        const auto at                    = vector->edits.find(node.point);
        if (at == vector->edits.end()) {
            continue;
        }
        for (const alora_edit_at & edit : at->second) {
            const double scale = (double) edit.scale * use_scale;
            keep_norm |= edit.kind == ALORA_EDIT_ADD_KEEP_NORM && scale != 0.0;
            for (int32_t d = 0; d < edit.n_directions; ++d) {
                const float * v = edit.directions.data() + d * n;
                add_times(out, v, (float) factor_of(edit, scale, h, v, n), n);
            }
        }
    }
    if (keep_norm) {
        const double before = std::sqrt(dot(h, h, n));
        const double after  = std::sqrt(dot(out, out, n));
        const float  factor = after > 0.0 ? (float) (before / after) : 1.0f;
        for (int64_t i = 0; i < n; ++i) {
            out[i] *= factor;
        }
    }
}

//
// the node
//

static char * row_of(const ggml_tensor * t, int64_t i) {
    const int64_t i1 = i % t->ne[1];
    const int64_t i2 = i / t->ne[1] % t->ne[2];
    const int64_t i3 = i / t->ne[1] / t->ne[2];
    return (char *) t->data + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3];
}

// Threads share the rows.
static void compute(ggml_tensor * dst, int ith, int nth, void * userdata) {
    auto & node = *(alora_steer::node *) userdata;
    node.chunks.each_range(ggml_nrows(dst), ith, nth, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const float * h   = (const float *) row_of(dst->src[0], i);
            float *       out = (float *) row_of(dst, i);
            memcpy(out, h, dst->ne[0] * sizeof(float));
            if (i < (int64_t) node.steered.rows.size() && node.steered.rows[i].n > 0) {
                steer_row(node, node.steered.rows[i], h, out, dst->ne[0]);
            }
        }
    });
}

bool alora_steer::is_node(const ggml_tensor & t) {
    ggml_custom_op_t fun;
    memcpy(&fun, t.op_params, sizeof(fun));
    return (t.op == GGML_OP_CUSTOM && fun == compute) ||
           (t.op == GGML_OP_MUL_MAT && strcmp(t.src[0]->name, "alora_directions") == 0);
}

// Not in place: who else reads the stream is the architecture's affair, and the copy costs nothing
// beside the node's barrier.
ggml_tensor * alora_steer::build(
        const alora_host & host, const alora_steered & steered, const alora_point & point,
        ggml_tensor * stream) {
    if (stream->nb[0] != sizeof(float)) {
        stream = ggml_cont(host.ctx, stream);
    }
    return host.node(
            { compute, &nodes.emplace_back(steered, point), "alora_steer" }, GGML_TYPE_F32,
            { stream->ne[0], stream->ne[1], stream->ne[2], stream->ne[3] }, { stream });
}

//
// on a device
//

static ggml_tensor * new_input(ggml_context * ctx, int64_t ne0, int64_t ne1, int64_t ne2) {
    ggml_tensor * t = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, ne0, ne1, ne2);
    ggml_set_input(t);
    ggml_set_name(t, "alora_steered");
    return t;
}

static ggml_tensor * layer_of(ggml_context * ctx, ggml_tensor * t, int64_t i) {
    return ggml_view_2d(ctx, t, t->ne[0], t->ne[1], t->nb[1], i * t->nb[2]);
}

static ggml_tensor * norm_of(ggml_context * ctx, ggml_tensor * rows) {
    static constexpr float SMALLEST = 1e-30f;  // of squares: a row of zeros stays one
    return ggml_clamp(ctx, ggml_sum_rows(ctx, ggml_sqr(ctx, rows)), SMALLEST, FLT_MAX);
}

// Factors of 0 leave a row as it is, bit for bit: 0 is added, and it is multiplied with 1. What
// overflows is clamped, because 0 times infinity is not 0.
ggml_tensor * alora_steer::build_on_device(
        ggml_context * ctx, const alora_steered & steered, const alora_directions::stack & stack,
        ggml_tensor * stream) {
    const int64_t n_rows = ggml_nrows(stream);
    ggml_tensor * h      = ggml_is_contiguous(stream)
                                   ? ggml_reshape_2d(ctx, stream, stream->ne[0], n_rows)
                                   : ggml_cont_2d(ctx, stream, stream->ne[0], n_rows);
    const input & in     = inputs.emplace_back(
            input{ steered, stack, new_input(ctx, stack.rows->ne[1], n_rows, 3),
                    new_input(ctx, 1, n_rows, 2) });

    ggml_tensor * along = ggml_mul_mat(ctx, stack.rows, h);  // V h [capacity, rows]
    ggml_prec_set_acc(along, GGML_PREC_F32);
    along           = ggml_clamp(ctx, along, -FLT_MAX, FLT_MAX);
    ggml_tensor * t = ggml_add(
            ctx, ggml_mul(ctx, along, layer_of(ctx, in.factors, 1)),
            ggml_mul(ctx, ggml_relu(ctx, along), layer_of(ctx, in.factors, 2)));
    t                    = ggml_add(ctx, t, layer_of(ctx, in.factors, 0));
    ggml_tensor * change = ggml_mul_mat(ctx, stack.turned, t);
    ggml_prec_set_acc(change, GGML_PREC_F32);
    ggml_tensor * moved = ggml_add(ctx, h, change);

    ggml_tensor * ratio  = ggml_sqrt(ctx, ggml_div(ctx, norm_of(ctx, h), norm_of(ctx, moved)));
    ggml_tensor * factor = ggml_add(
            ctx, ggml_mul(ctx, ratio, layer_of(ctx, in.norms, 0)), layer_of(ctx, in.norms, 1));
    return ggml_reshape_4d(
            ctx, ggml_mul(ctx, moved, factor), stream->ne[0], stream->ne[1], stream->ne[2],
            stream->ne[3]);
}

void alora_steer::set_inputs() const {
    for (const input & in : inputs) {
        if (!in.factors->buffer) {
            continue;  // nothing in the graph reads it
        }
        const int64_t      capacity = in.factors->ne[0];
        const int64_t      n_rows   = in.factors->ne[1];
        std::vector<float> factors(ggml_nelements(in.factors), 0.0f);
        std::vector<float> norms(2 * n_rows, 0.0f);
        for (int64_t i = 0; i < n_rows; ++i) {
            const bool known = i < (int64_t) in.steered.rows.size();
            const auto row   = known ? in.steered.rows[i] : alora_steered::row{ 0, 0 };
            bool       keeps = false;
            for (int32_t u = row.first; u < row.first + row.n; ++u) {
                const auto & [vector, use_scale] = in.steered.uses[u];
                for (size_t k = 0; k < in.stack.of.size(); ++k) {
                    const alora_edit_at * edit = in.stack.of[k].edit;
                    if (in.stack.of[k].vector != vector) {
                        continue;
                    }
                    const float scale       = edit->scale * use_scale;
                    const bool  is_of       = edit->kind == ALORA_EDIT_PROJECT;
                    const bool  is_positive = edit->kind == ALORA_EDIT_PROJECT_POSITIVE;
                    const int   kind        = is_of ? 1 : is_positive ? 2 : 0;
                    keeps |= edit->kind == ALORA_EDIT_ADD_KEEP_NORM && scale != 0.0f;
                    factors[(kind * n_rows + i) * capacity + k] += kind == 0 ? scale : -scale;
                }
            }
            norms[i]          = keeps ? 1.0f : 0.0f;
            norms[n_rows + i] = keeps ? 0.0f : 1.0f;
        }
        ggml_backend_tensor_set(in.factors, factors.data(), 0, ggml_nbytes(in.factors));
        ggml_backend_tensor_set(in.norms, norms.data(), 0, ggml_nbytes(in.norms));
    }
}
