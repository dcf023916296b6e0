#ifndef RULE_H
#define RULE_H

/* As `Rule` of cmasd/policies/base.py, over a confidence that is a weighted sum of a token's `LogitNumbers` from
   the entropy on. */
struct rule {
    const double *go_on, *keep, *offsets; /* by tokens drafted; offsets null: confidence is taken as it is */
    double slope, edge, bias, weights[4], more[2]; /* of what entropy and softmax margin say beyond confidence */
    int64_t is_mean;
};

static double log_odds(double share, double edge)
{
    share = share < edge ? edge : share > 1 - edge ? 1 - edge : share;
    return log(share / (1 - share));
}

#endif
