"""The sweep, written once over whichever backend's launchers (`kernels` or `native`).

Chunks of anchor rows against all blocks of candidates. For a chunk, with s the similarity, x = f(s) / temperature the
logit of a negative and x_ip the positive's:

    c_i    = max(x_ip, x_max - 64) + 0.3148        a shift without a pass over the row: unit rows bound the logits
    e_ij   = exp(x_ij - c_i), 0 at the positive    Zneg_i = sum_j e_ij,  Z_i = Zneg_i + exp(x_ip - c_i)
    t_i    = log(Zneg_i) + c_i - x_ip
    loss_i = log(Z_i) + c_i - x_ip = log(1 + exp(t_i))         so that a loss of 1e-6 keeps its digits
    w_i    = Zneg_i / Z_i = 1 / (1 + exp(-t_i))                the positive's gradient, without cancellation
    E_ij   = e_ij f'(s_ij) / |c_j|                             kept for the chunk
    k_i    = w_i f+'(s_ip) / (temperature |a_i| |c_p|)
    da_i   = (E c)_i / (temperature |a_i| Z_i) - k_i c_p
    dc_j  += (E^T (a / (temperature |a| Z)))_j - sum of k_i a_i over the rows whose positive is j

Rows are never normalised in memory: norms are factors of s, and the gradient's part along a row is taken off at the
end. 6 N M D floating-point operations in all (`one_pass`). Without gradients only sums are made (2 N M D). With a
gradient per row, or a column direction, the sums come first and the gradient weights are made in a second pass, when
the upstream gradient is known (8 N M D, `two_passes`).
"""
