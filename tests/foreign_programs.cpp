// Loads a control vector with llama.cpp's own reader, and writes what it holds, or a model's logits under it, to stdout.
//
//   foreign_programs BACKENDS MODEL VECTOR TOKEN...   logits after the last token; VECTOR may be "-" for none
//   foreign_programs - - VECTOR                       the vector's floats, layer 1 first
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

struct common_control_vector_load_info { float strength; std::string fname; };
struct common_control_vector_data { int n_embd; std::vector<float> data; };
common_control_vector_data common_control_vector_load(const std::vector<common_control_vector_load_info> &);

// Parameters that are only handed on: passed on the stack alone (System V), where what is too long is never looked at.
struct Parameters { char bytes[2048]; };
struct Batch {
    int32_t n_tokens;
    int32_t * token;
    float * embd;
    int32_t * pos;
    int32_t * n_seq_id;
    int32_t ** seq_id;
    int8_t * logits;
};

extern "C" {
void ggml_backend_load_all_from_path(const char *);
void llama_backend_init();
void llama_log_set(void (*)(int, const char *, void *), void *);
Parameters llama_model_default_params();
Parameters llama_context_default_params();
void * llama_model_load_from_file(const char *, Parameters);
void * llama_init_from_model(void *, Parameters);
Batch llama_batch_get_one(int32_t *, int32_t);
int32_t llama_decode(void *, Batch);
float * llama_get_logits_ith(void *, int32_t);
const void * llama_model_get_vocab(void *);
int32_t llama_vocab_n_tokens(const void *);
int32_t llama_model_n_layer(void *);
int32_t llama_set_adapter_cvec(void *, const float *, size_t, int32_t, int32_t, int32_t);
}

static void leave(const float * numbers, size_t n) {
    fwrite(numbers, sizeof(float), n, stdout);
    fflush(stdout);
    _Exit(0);
}

int main(int argc, char ** argv) {
    if (argc < 4) return 1;
    llama_log_set([](int, const char *, void *) {}, nullptr);
    common_control_vector_data vector = {0, {}};
    if (std::string(argv[3]) != "-") vector = common_control_vector_load({{1.0f, argv[3]}});
    if (vector.n_embd < 0) return 2;
    if (std::string(argv[2]) == "-") leave(vector.data.data(), vector.data.size());
    ggml_backend_load_all_from_path(argv[1]);
    llama_backend_init();
    void * model = llama_model_load_from_file(argv[2], llama_model_default_params());
    void * context = model ? llama_init_from_model(model, llama_context_default_params()) : nullptr;
    if (!context) return 3;
    if (!vector.data.empty()) {
        const int last = llama_model_n_layer(model);
        if (llama_set_adapter_cvec(context, vector.data.data(), vector.data.size(), vector.n_embd, 1, last)) return 4;
    }
    std::vector<int32_t> tokens;
    for (int i = 4; i < argc; i++) tokens.push_back(atoi(argv[i]));
    if (llama_decode(context, llama_batch_get_one(tokens.data(), tokens.size()))) return 5;
    leave(llama_get_logits_ith(context, -1), llama_vocab_n_tokens(llama_model_get_vocab(model)));
}
